"""VGG16 and AlexNet as perceptual metrics use them, as a prior: maps of edges, textures and parts of things.

Nothing is imported here, so that listing the weights needs no torch.
"""
