"""IAT: an illumination adaptive transformer, for photographs that are too dark or badly exposed.

Cui, Li, Gu, Su, Gao, Jiang, Qiao, Harada: You Only Need 90K Parameters to Adapt Light: a Light Weight
Transformer for Image Enhancement and Exposure Correction, BMVC 2022 (arXiv 2205.14871). Written from the
paper; parameter names follow the published checkpoints, of which none is declared here: give the path of a
file as ``weights``.

Shapes: B batch, D features, H W pixels, h w cells of 4 x 4 pixels, N of them; images have three channels.
"""
