"""Chains and files that the tests of PTG-RM share."""

import sys

import numpy as np
import pytest
import torch
from guides import Deep
from safetensors.torch import save_file

from restorekit import Pipeline, PipelineSpec
from restorekit.cli import app
from restorekit_ptgrm.network import PTGRM

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
