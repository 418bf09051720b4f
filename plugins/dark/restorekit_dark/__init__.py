"""Networks that were trained without clean images to make dark ones bright: Zero-DCE++, SCI, PairLIE.

Written from the papers; parameter names follow the published checkpoints, of which none is declared here:
those of Zero-DCE++ are not for commercial use, and what holds for the others could not be confirmed. Give the
path of a file as ``weights``.

Shapes: B batch, D features, H W pixels, h w cells; images have three channels.
"""
