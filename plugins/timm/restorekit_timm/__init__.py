"""Vision towers of timm as priors: DINOv2, DINOv3, SigLIP 2, ConvNeXt, CLIP, EfficientNet and others.

Nothing is imported here, so that listing the weights needs neither torch nor timm.
"""
