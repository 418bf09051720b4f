"""FFDNet: a fast denoiser that is told how much noise there is.

Zhang, Zuo, Zhang: FFDNet: Toward a Fast and Flexible Solution for CNN based Image Denoising, IEEE TIP 2018
(arXiv 1710.04026). Written from the paper; parameter names follow the published checkpoints.

The network is in ``network``; nothing is imported here, so that listing the weights needs no torch.

Shapes: B batch, C image channels, D features, H W pixels, h w half of them.
"""
