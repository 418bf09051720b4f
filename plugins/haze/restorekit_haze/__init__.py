"""Networks that remove haze: AOD-Net and GCANet, one of whose published files removes rain.

Written from the papers; parameter names follow the published checkpoints, of which none is declared here:
those of GCANet are for research alone. Give the path of a file as ``weights``.

Shapes: B batch, D features, H W pixels, h w half of them; images have three channels.
"""
