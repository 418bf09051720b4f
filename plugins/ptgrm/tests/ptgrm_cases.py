"""Networks, images, chains and files that the tests of PTG-RM share."""

import sys

import numpy as np
import pytest
import torch
from guides import Deep
from safetensors.torch import save_file

from restorekit import Pipeline, PipelineSpec
from restorekit.cli import app
from restorekit.contracts import PriorFeatures
from restorekit_ptgrm.network import PTGRM

# What the rows of the paper's table 3 are called here.
ABLATIONS = {
    "full": {},
    "without SP": {"range_map": "sum"},
    "without CA": {"channel_attention": "features"},
    "without SA": {"spatial_attention": "features"},
    "large": {
        "width": 32,
        "range_map": "sum",
        "channel_attention": "features",
        "spatial_attention": "features",
    },
    "without position": {"positions": False},
    "SNR as mask": {"range_map": "snr"},
    "1D prior": {
        "range_map": "sum",
        "channel_attention": "none",
        "spatial_attention": "none",
        "concatenation": "vector",
    },
    "2D prior": {
        "range_map": "sum",
        "channel_attention": "none",
        "spatial_attention": "none",
        "concatenation": "map",
        "dense_features": 5,
    },
    "channel attention alone": {"spatial_attention": "none"},
    "spatial attention alone": {"channel_attention": "none"},
    "release": {"head": "release", "gate": "release"},
    "one mask": {"mask_channels": 1},
    "kernels of 5": {"kernel": 5},
    "no block, no kernel to speak of": {"long_blocks": 0, "kernel": 1},
}
every_variant = pytest.mark.parametrize("params", ABLATIONS.values(), ids=ABLATIONS)

IMAGE = np.random.default_rng(0).random((45, 62, 3), dtype=np.float32)


def network_of(step):
    return Pipeline.build(PipelineSpec.parse({"steps": [step]})).steps[0].network


def chain(*steps, **more):
    return {"steps": list(steps), **more}


def saved(tmp_path, network, name):
    save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
    return str(tmp_path / f"{name}.safetensors")


def inside(tmp_path, start="identity"):
    """Return the steps of a backbone with its features refined, and both networks."""
    torch.manual_seed(0)
    params = {"prior_features": 16, "level": "feature", "latent_features": 8, "start": start}
    deep, refiner = Deep().eval(), PTGRM(**params).eval()
    refine = {"name": "ptgrm", "weights": saved(tmp_path, refiner, "r"), "params": params}
    steps = (
        {"restore": {"name": "deep", "weights": saved(tmp_path, deep, "d")}},
        {"refine": {**refine, "prior": "statistics"}},
    )
    return steps, deep, refiner


def run_command(capsys, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["restorekit", *map(str, words)])
    with pytest.raises(SystemExit) as exit:
        app()
    return exit.value.code, *capsys.readouterr()


def built(seed=0, **params):
    """Return a network whose every weight matters: priors enter weakly as torch initialises them."""
    torch.manual_seed(seed)
    network = PTGRM(**{"prior_features": 16, "start": "random", **params}).eval()
    for name, parameter in network.named_parameters():
        if "prior" in name or "last" in name:
            parameter.data *= 4
    return network


def given(height=64, width=96, batch=1, seed=1, channels=3, features=16):
    """Return a degraded and a restored image and a prior."""
    generator = torch.Generator().manual_seed(seed)
    degraded, restored = torch.rand(2, batch, channels, height, width, generator=generator)
    glob = torch.randn(batch, features, generator=generator)
    return degraded, restored, PriorFeatures(glob, torch.rand(batch, 5, 6, 9, generator=generator), 8)


def doubled(images):
    degraded, restored, prior = images
    return degraded.double(), restored.double(), PriorFeatures(prior.glob.double(), prior.dense.double(), 8)
