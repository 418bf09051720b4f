"""PTG-RM: a refiner of restored images, guided by a pretrained model.

Xu, Kong, Hu, Liu, Bao: Boosting Image Restoration via Priors from Pre-trained Models, CVPR 2024 (arXiv
2403.06793). Written from the paper; layer sizes, which it does not give, are those of its published
configuration, as described in docs/ptgrm.md.

Shapes: B batch, C image channels, D latent features, H W pixels of the image, h w pixels of the latent (a
quarter of the side), F prior features, E embedded prior features.
"""
