from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from restorekit.building import construct
from restorekit.config import ComponentRef
from restorekit.errors import ConfigError, UnknownComponentError, WeightsError
from restorekit.plan import Part
from restorekit.registry import backbones, priors
from restorekit.testing import check_prior
from restorekit_backbone_prior.prior import BackbonePrior

DNCNN = Path(__file__).parents[4] / "shared" / "weights" / "dncnn" / "kair_dncnn_25.pth"
SMALL = {
    "nafnet": dict(width=8, encoder_blocks=(1, 1, 1), middle_blocks=1, decoder_blocks=(1, 1, 1)),
    "restormer": dict(dim=8, blocks=(1, 1, 1, 1), refinement_blocks=1, heads=(1, 1, 2, 2)),
    "mprnet": dict(width=8, width_step=4, third_step=4, blocks=1),
    "ffdnet": dict(width=16, layers=3),
    "prenet": dict(width=8, blocks=1, stages=2),
    "iat": dict(width=8, blocks=1, features=16),
    "gcanet": dict(width=8),
    "pairlie": dict(width=16),
}
# By backbone: the layer that is found, its channels and its stride.
FOUND = {
    "nafnet": ("middle_blks", 64, 8),
    "restormer": ("latent", 64, 8),
    # Its encoders are deeper, but see the image in quarters and halves.
    "mprnet": ("stage3_orsnet.up_dec2.1.up", 8, 4),
    # Its layers are run one by one, and all but the last have the most channels.
    "ffdnet": ("model.3", 16, 2),
    # All else is run once in each stage.
    "prenet": ("deepest", 8, 1),
    "iat": ("global_net.conv_large", 16, 4),
    "gcanet": ("res7", 8, 2),
    # The map of the light is a block's, too, but of one channel.
    "pairlie": ("R_net.R_net.11", 16, 1),
}


def installed(name):
    if name not in backbones:
        pytest.skip(f"the backbone {name} is not installed")
    return backbones[name].load()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Save small networks with random weights."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name, params in SMALL.items():
        network = installed(name)(**params)
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        save_file(network.state_dict(), folder / f"{name}.safetensors")
    return folder


def prior_of(name, weights, **more):
    return dict(backbone=name, params=SMALL[name], weights=str(weights / f"{name}.safetensors"), **more)


@pytest.mark.parametrize("name", SMALL)
def test_contract_is_kept_by_the_deepest_features(name, weights):
    check_prior(BackbonePrior, **prior_of(name, weights, differentiable=True))


def test_contract_is_kept_in_half_precision_and_other_modes(weights):
    check_prior(BackbonePrior, **prior_of("nafnet", weights, mode="squash", size=64, dtype="bf16"))


@pytest.mark.parametrize("name", FOUND)
def test_the_deepest_layer_is_found(name, weights):
    prior = BackbonePrior(**prior_of(name, weights))
    layer, channels, stride = FOUND[name]
    assert (prior.layer, prior.features) == (layer, channels)
    features = prior(torch.rand(2, 3, 101, 67))
    assert features.stride == stride
    assert features.dense.shape == (2, channels, -(-101 // stride), -(-67 // stride))


def test_features_are_those_of_the_whole_network_and_what_follows_is_not_run(weights):
    prior = BackbonePrior(**prior_of("nafnet", weights))
    network = installed("nafnet")(**SMALL["nafnet"]).eval()
    network.load_state_dict(prior.network.state_dict())
    caught = []
    network.middle_blks.register_forward_hook(lambda module, inputs, output: caught.append(output))
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        network(image)
    torch.testing.assert_close(prior(image).dense, caught[0])
    prior.network.ending.register_forward_hook(lambda *_: pytest.fail("the end was run"))
    mean = torch.nn.functional.normalize(caught[0].mean((2, 3)), dim=1)
    torch.testing.assert_close(prior(image).glob, mean)


def test_a_layer_is_chosen_by_name(weights):
    prior = BackbonePrior(**prior_of("nafnet", weights, layer="encoders.0"))
    assert (prior.features, prior(torch.rand(1, 3, 64, 64)).stride) == (8, 1)
    with pytest.raises(ConfigError, match=r"no 'encoder\.0'") as caught:
        BackbonePrior(**prior_of("nafnet", weights, layer="encoder.0"))
    assert "encoders.0" in caught.value.hint
    other = BackbonePrior(**prior_of("nafnet", weights))
    assert prior.fingerprint != other.fingerprint
    with pytest.raises(ConfigError, match=r"encoder_level3' returns no map of the whole image"):
        BackbonePrior(**prior_of("mprnet", weights, layer="stage1_encoder.encoder_level3"))


def test_a_layer_that_runs_in_every_stage_is_refused(weights):
    with pytest.raises(ConfigError, match=r"'res_conv1' runs 2 times an image") as caught:
        BackbonePrior(**prior_of("prenet", weights, layer="res_conv1"))
    assert "deepest" in caught.value.hint


def test_wrong_backbones_and_weights_are_refused(weights):
    with pytest.raises(UnknownComponentError, match="no backbone called 'nafnat'"):
        BackbonePrior("nafnat")
    with pytest.raises(WeightsError, match="no weights are given"):
        BackbonePrior("nafnet", params=SMALL["nafnet"])
    installed("median")
    with pytest.raises(ConfigError, match="Median has no layers inside with more than 3 channels"):
        BackbonePrior("median")


@pytest.mark.parametrize(
    ("params", "where", "message"),
    [
        ({}, "prior.params", "backbone needs 'backbone'"),
        ({"backbone": "nafnet", "size": "224"}, "prior.params.size", "is '224'"),
        ({"backbone": "nafnet", "params": 3}, "prior.params.params", "backbone refuses 3"),
    ],
)
def test_arguments_that_are_missing_or_no_numbers_are_told_by_their_keys(params, where, message):
    installed("nafnet")
    part = Part("prior", "prior", priors["backbone"], ComponentRef(name="backbone", params=params), None)
    with pytest.raises(ConfigError, match=message) as caught:
        construct(part)
    assert caught.value.where == where


@pytest.mark.skipif(not DNCNN.is_file(), reason="DnCNN's weights are not here: ../shared/weights/dncnn")
def test_a_published_dncnn_of_gray_images_describes_colour_ones():
    installed("spandrel")
    check_prior(BackbonePrior, backbone="spandrel", weights=str(DNCNN), mode="squash", size=16)
    prior = BackbonePrior("spandrel", weights=str(DNCNN))
    assert prior.features == 64
    image = torch.rand(1, 3, 32, 48)
    noisy = (image + 0.1 * torch.randn_like(image)).clamp(0, 1)
    clean, other = prior(image), prior(noisy)
    assert clean.dense.shape == (1, 64, 32, 48) and clean.stride == 1
    assert (clean.glob - other.glob).abs().max() > 1e-3


def test_a_plan_knows_the_network_inside():
    installed("nafnet")
    ref = ComponentRef(name="backbone", params={"backbone": "nafnet", "weights": "denoise"})
    facts = Part("steps[1].refine.prior", "prior", priors["backbone"], ref, None).facts()
    assert facts["weights"] == "nafnet/denoise" and len(facts["weights_sha256"]) == 64
    assert facts["to_download"] == 0 and facts["parameters"] > 100_000
