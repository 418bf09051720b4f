"""MPRNet: multi-stage progressive image restoration.

Zamir, Arora, Khan, Hayat, Khan, Yang, Shao: Multi-Stage Progressive Image Restoration, CVPR 2021 (arXiv
2102.02808). Written from the paper; parameter names follow the published checkpoints.

The network is in ``network``; nothing is imported here, so that listing the weights needs no torch.

Shapes: B batch, C image channels, D features, H W pixels of a level.
"""
