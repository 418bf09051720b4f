"""Latent diffusion models as priors, through diffusers: the autoencoder's encoder, and half of the UNet.

Rombach et al.: High-Resolution Image Synthesis with Latent Diffusion Models, CVPR 2022 (arXiv 2112.10752).
Nothing is imported here, so that listing the weights needs neither torch nor diffusers.
"""
