from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from restorekit.errors import ConfigError, WeightsError
from restorekit.testing import check_prior
from restorekit_diffusion.prior import Diffusion

diffusers = pytest.importorskip("diffusers", exc_type=(ImportError, RuntimeError))

TAE = Path(__file__).parents[4] / "shared" / "weights" / "tae"
needs_tae = pytest.mark.skipif(
    not TAE.is_dir(), reason="tiny autoencoders' weights are not here: ../shared/weights"
)


def test_a_tiny_autoencoder_of_diffusers_gives_its_latents(tmp_path):
    torch.manual_seed(0)
    model = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 3,
        decoder_block_out_channels=(8,) * 3,
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).eval()
    model.save_pretrained(tmp_path)
    check_prior(Diffusion, reference=str(tmp_path), size=64, differentiable=True)
    image = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        expected = model.encode(2 * image - 1).latents
    torch.testing.assert_close(Diffusion(str(tmp_path), mode="dynamic")(image).dense, expected)
    with pytest.raises(ConfigError, match="a tiny autoencoder has none"):
        Diffusion(str(tmp_path), layer="vae")


@needs_tae
@pytest.mark.parametrize(("name", "channels", "stride"), [("taef2", 32, 8), ("taesana", 32, 32)])
def test_published_tiny_encoders_are_read_and_describe_images(name, channels, stride):
    file = TAE / f"{name}_encoder.pth"
    check_prior(Diffusion, reference=str(file), size=32)
    features = Diffusion(str(file), mode="dynamic")(torch.rand(1, 3, 64, 96))
    assert features.stride == stride
    assert features.dense.shape == (1, channels, 64 // stride, 96 // stride)


@needs_tae
def test_published_latents_are_those_that_the_published_decoder_turns_back(tmp_path):
    """The decoder is built of the same blocks; a wrong reading of the encoder gives less than 15 dB."""
    data = pytest.importorskip("skimage.data")
    from restorekit_diffusion.tiny import _Block

    image = torch.from_numpy(data.astronaut()[192:320, 192:320]).permute(2, 0, 1)[None] / 255
    latents = Diffusion(str(TAE / "taef2_encoder.pth"), mode="dynamic")(image).dense
    tensors = torch.load(TAE / "taef2_decoder.pth", weights_only=True)
    layers = []
    for place in range(1 + max(int(name.partition(".")[0]) for name in tensors)):
        weight = tensors.get(f"{place}.weight")
        if f"{place}.conv.0.weight" in tensors:
            layers.append(_Block(64, pooled=f"{place}.pool.0.weight" in tensors))
        elif weight is not None:
            biased = f"{place}.bias" in tensors
            layers.append(torch.nn.Conv2d(*weight.shape[1::-1], 3, padding=1, bias=biased))
        else:
            names = {0: torch.nn.Identity, 2: torch.nn.ReLU}
            layers.append(names.get(place, lambda: torch.nn.Upsample(scale_factor=2))())
    decoder = torch.nn.Sequential(*layers)
    decoder.load_state_dict(tensors)
    with torch.no_grad():
        restored = decoder(3 * torch.tanh(latents / 3)).clamp(0, 1)
    assert -10 * (restored - image).square().mean().log10() > 25


def test_a_file_of_something_else_is_refused(tmp_path):
    save_file({"conv.weight": torch.ones(1)}, tmp_path / "net.safetensors")
    with pytest.raises(WeightsError, match="is no encoder of a tiny autoencoder"):
        Diffusion(str(tmp_path / "net.safetensors"))
