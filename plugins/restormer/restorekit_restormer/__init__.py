"""Restormer: a U-shaped transformer whose attention runs over channels, so that its cost is linear in pixels.

Zamir, Arora, Khan, Hayat, Khan, Yang: Restormer: Efficient Transformer for High-Resolution Image Restoration,
CVPR 2022 (arXiv 2111.09881). Written from the paper; parameter names follow the published checkpoints.

Shapes: B batch, C image channels, D features of a level, H W pixels of a level, N heads.
"""
