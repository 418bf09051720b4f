"""What tests of ``restorekit faig`` share: a folder with all that the commands ask for."""

from __future__ import annotations

import json

import numpy as np
import PIL.Image
import torch
from analysis_cases import noisy, scenes, toy
from safetensors.torch import save_file

from restorekit.analysis import attribute, contrasted
from restorekit.analysis.images import FilePairs
from restorekit.catalog import COMPONENT_KEY, PARAMS_KEY
from restorekit.datasets import find
from restorekit.degradations.spec import RecipeSpec

RECIPES = {"noise": "name: gaussian\nsigma: 38\n", "blur": "name: gaussian_blur\nstd: 1\n"}


def write(images, folder):
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        levels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        PIL.Image.fromarray(levels).save(folder / f"{number}.png")
    return folder


def to_tensor(picture):
    with PIL.Image.open(picture) as opened:
        return torch.from_numpy(np.array(opened)).permute(2, 0, 1)[None] / 255


def size(picture):
    with PIL.Image.open(picture) as opened:
        return opened.size


def furnish(folder):
    """Write weights as training exports them, photographs, recipes, and contrasted scores for them."""
    base, target = toy()
    facts = {COMPONENT_KEY: "srresnet", PARAMS_KEY: json.dumps({"width": 12, "blocks": 2, "scale": 1})}
    for name, network in (("base", base), ("target", target)):
        save_file(network.state_dict(), folder / f"{name}.safetensors", facts)
    clean = scenes(8, 28, 31)
    write(clean, folder / "clean")
    write(noisy(clean[:2]), folder / "pairs" / "input")
    write(clean[:2], folder / "pairs" / "target")
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
    found = {}
    for label in RECIPES:
        recipe = RecipeSpec.model_validate(
            {"name": "gaussian", "sigma": 38} if label == "noise" else "gaussian_blur"
        )
        pairs = FilePairs.of(find(folder / "clean"), target, recipe, limit=3)
        found[label] = attribute(base, target, pairs, label=label, steps=8)
        found[label].save(folder / f"raw-{label}.safetensors")
    for label, scores in contrasted(found).items():
        scores.save(folder / f"{label}.safetensors")
    return folder
