"""Figures of the FAIG paper as its authors and others showed them on slides, to stand beside ours.

Mean and standard deviation as given; the paper's own tables could not be read.
"""

from __future__ import annotations

from collections.abc import Mapping

# (mean, deviation)
Figure = tuple[float, float]

METHODS = ("faig", "ig", "delta", "random")
#: Ours, for which nothing is published: FAIG contrasted in shares of the sums.
SHARES_METHOD = "faig-shares"

#: Masking test, in thousandths: network -> input -> ratio -> a figure for each method.
MASKING: Mapping[str, Mapping[str, Mapping[float, tuple[Figure, ...]]]] = {
    "srresnet": {
        "blur": {
            0.01: ((6.68, 0.63), (4.31, 1.54), (0.18, 0.13), (0.07, 0.01)),
            0.05: ((7.53, 0.24), (6.41, 0.88), (2.16, 0.61), (0.55, 0.32)),
        },
        "noise": {
            0.01: ((6.62, 0.54), (4.22, 0.44), (0.49, 0.10), (0.04, 0.01)),
            0.05: ((16.28, 3.84), (8.01, 1.04), (3.25, 1.85), (0.19, 0.05)),
        },
    },
    "srcnn": {
        "blur": {
            0.01: ((5.02, 0.36), (0.74, 0.42), (0.63, 0.65), (0.05, 0.02)),
            0.05: ((5.74, 0.29), (2.53, 1.02), (2.18, 0.25), (0.45, 0.07)),
        },
        "noise": {
            0.01: ((1.40, 0.37), (0.28, 0.11), (0.63, 0.35), (0.02, 0.00)),
            0.05: ((4.86, 0.90), (0.93, 1.05), (2.01, 0.12), (0.11, 0.01)),
        },
    },
}
MASKING_SET: Mapping[str, str] = {"srresnet": "SRResNet, Set14", "srcnn": "SRCNN-style, BSDS100"}

#: Retraining 1 % of the filters, PSNR in dB: deck -> input -> filters for -> a figure for each method.
RETRAINING: Mapping[str, Mapping[str, Mapping[str, tuple[Figure, ...]]]] = {
    "authors' deck": {
        "blur": {
            "blur": ((28.047, 0.023), (26.474, 0.295), (26.758, 0.103), (27.028, 0.154)),
            "noise": ((27.463, 0.133), (26.656, 0.265), (26.746, 0.139), (27.041, 0.149)),
        },
        "noise": {
            "blur": ((25.590, 0.071), (25.233, 0.051), (25.444, 0.008), (25.525, 0.037)),
            "noise": ((25.793, 0.021), (25.465, 0.014), (25.448, 0.009), (25.526, 0.010)),
        },
    },
    "deck on ADMS": {
        "blur": {
            "blur": ((27.889, 0.207), (26.389, 0.274), (26.444, 0.097), (26.691, 0.092)),
            "noise": ((27.642, 0.007), (26.534, 0.125), (26.444, 0.096), (26.668, 0.126)),
        },
        "noise": {
            "blur": ((25.268, 0.035), (25.211, 0.005), (25.288, 0.044), (25.239, 0.034)),
            "noise": ((25.743, 0.033), (25.141, 0.116), (25.275, 0.035), (25.204, 0.016)),
        },
    },
}
#: The whole network fine-tuned: input -> PSNR in dB, of both decks.
UPPER_BOUND: Mapping[str, Figure] = {"blur": (29.203, 0.021), "noise": (26.712, 0.008)}

#: Accuracy of telling a degradation by overlap scores.
OVERLAP: Mapping[str, float] = {"noise": 0.98, "blur": 0.96}
#: Overlap over which an image has it.
OVERLAP_THRESHOLDS: Mapping[str, float] = {"noise": 0.6, "blur": 0.5}
