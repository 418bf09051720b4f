"""NAFNet and its Baseline: restoration networks without non-linear activation functions.

Chen, Chu, Zhang, Sun: Simple Baselines for Image Restoration, ECCV 2022 (arXiv 2204.04676), and, for local
pooling at test time, Chu, Chen, Chen, Lu: Improving Image Restoration by Revisiting Global Information
Aggregation, ECCV 2022. Written from the papers; parameter names follow the published checkpoints.

The networks are in ``network``; nothing is imported here, so that listing the weights needs no torch.

Shapes: B batch, C image channels, D features of a level, H W pixels of a level.
"""
