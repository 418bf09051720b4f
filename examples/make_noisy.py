"""Make noisy.png from a clean photograph: reduced, Gaussian noise of sigma 30, clipped and rounded to 8 bits.

$ python examples/make_noisy.py PHOTO
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, SIGMA = 960, 30

photo = Image.open(sys.argv[1]).convert("RGB")
photo = photo.resize((WIDTH, round(photo.height * WIDTH / photo.width)), Image.Resampling.LANCZOS)
noisy = np.asarray(photo) + np.random.default_rng(0).normal(0, SIGMA, (photo.height, WIDTH, 3))
Image.fromarray(np.rint(noisy.clip(0, 255)).astype(np.uint8)).save(Path(__file__).with_name("noisy.png"))
