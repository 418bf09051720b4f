"""What ends an attribution: interruptions, after which it goes on, and what it refuses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from analysis_cases import Layers, StoppedError, both, images, moved
from safetensors.torch import save_file
from torch import nn

from restorekit.analysis import attribute, rank
from restorekit.analysis.walk import sse
from restorekit.errors import ConfigError, ImageError, OutputError, RestoreKitError, WeightsError
from restorekit.filterscores import FilterScores


def cut_off(gradients):
    """Return a progress that stops the attribution after so many gradients."""

    def progress(done, total):
        if done == gradients:
            raise StoppedError

    return progress


def test_an_interrupted_attribution_goes_on_and_ends_the_same(tmp_path):
    base, target = both("nafnet")
    pairs = [(degraded.float(), clean.float()) for degraded, clean in images(4, side=8)]
    file = tmp_path / "state.safetensors"
    whole = attribute(base.float(), target.float(), pairs, label="x")
    seen = []
    assert whole.steps == 8
    # In the middle of the third image, after the search on two, and, gone on with, in that of the fourth.
    for gradients in (4 * whole.steps + 2, 3 * whole.steps + 2):
        with pytest.raises(StoppedError):
            attribute(base, target, pairs, label="x", checkpoint=file, progress=cut_off(gradients))
    done = attribute(base, target, pairs, label="x", checkpoint=file, progress=lambda *at: seen.append(at))
    assert seen[0] == (3 * whole.steps + 1, 4 * whole.steps) and seen[-1] == (4 * whole.steps,) * 2
    assert torch.equal(whole.values, done.values) and whole.details == done.details
    again = attribute(base, target, pairs, label="x", checkpoint=file, progress=cut_off(1))
    assert torch.equal(whole.values, again.values)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_the_search_for_steps_tells_how_far_it_is():
    base, target = both("nafnet")
    pairs, seen = images(3, side=8), []
    made = attribute(base, target, pairs, label="x", tolerance=2e-4, progress=lambda *told: seen.append(told))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    # On two images with 8 steps, 16 and so on, and then with the last of them on all three.
    searched = 2 * (2 * made.steps - 8)
    assert made.steps > 8 and seen[0] == (1, 2 * 8 + 3 * 8) and seen[16] == (17, 2 * (8 + 16) + 3 * 16)
    assert seen[-1] == (searched + 3 * made.steps,) * 2
    attribute(base, target, iter(pairs), label="x", tolerance=0.5, progress=lambda *told: seen.append(told))
    assert seen[-1] == (2 * 8 + 3 * 8, 0)


@pytest.mark.parametrize("method", ["faig", "ig", "gradxdelta"])
def test_fewer_images_than_the_checkpoint_has_are_refused(method, tmp_path):
    base, target = both("srcnn")
    pairs, file = images(3, 2, 8), tmp_path / "state.safetensors"
    rank(method, base, target, pairs, label="x", steps=2, checkpoint=file)
    with pytest.raises(ImageError, match="the checkpoint has 3 images, and 2 are given"):
        rank(method, base, target, pairs[:2], label="x", steps=2, checkpoint=file)


@pytest.mark.parametrize("method", ["ig", "gradxdelta"])
def test_other_methods_go_on_too_and_end_the_same(method, tmp_path):
    base, target = both("srcnn")
    pairs, file, seen = images(3, 2, 8), tmp_path / "state.safetensors", []
    whole = rank(method, base, target, pairs, label="x", steps=2)
    each = whole.details["steps"]
    with pytest.raises(StoppedError):
        rank(method, base, target, pairs, label="x", steps=2, checkpoint=file, progress=cut_off(2 * each + 1))
    words = {"label": "x", "steps": 2, "checkpoint": file}
    done = rank(method, base, target, pairs, **words, progress=lambda *at: seen.append(at))
    assert seen == [(2 * each + step, 3 * each) for step in range(1, each + 1)]
    assert torch.equal(whole.values, done.values) and whole.details == done.details
    if method == "ig":
        with pytest.raises(WeightsError, match="begun with another method: ig, now faig"):
            attribute(base, target, pairs, **words)


@pytest.mark.parametrize("method", ["faig", "ig"])
def test_a_checkpoint_may_be_named_by_its_text(method, tmp_path):
    base, target = both("srcnn")
    pairs, file = images(2, 2, 8), tmp_path / "state.safetensors"
    whole = rank(method, base, target, pairs, label="x", steps=2, checkpoint=str(file))
    again = rank(method, base, target, pairs, label="x", steps=2, checkpoint=file, progress=cut_off(1))
    assert torch.equal(whole.values, again.values)


def test_checkpoints_of_something_else_are_refused(tmp_path):
    base, target = both("srcnn")
    pairs, file = images(2, 2, 8), tmp_path / "state.safetensors"
    attribute(base, target, pairs, label="x", steps=2, checkpoint=file)
    for changes, key in (({"label": "y"}, "label"), ({"rule": "left"}, "rule"), ({"steps": 3}, "asked")):
        facts = {"label": "x", "steps": 2, **changes}
        with pytest.raises(WeightsError, match=f"begun with another {key}"):
            attribute(base, target, pairs, checkpoint=file, **facts)
    for changes, told in (
        ({"unit": "out"}, "another unit: kernel, now out"),
        ({"exclude": "0"}, r"other layers: features\.0\.weight is \(6, 3, 3, 3\), now not among them"),
    ):
        with pytest.raises(WeightsError, match=rf"was begun with {told}\n"):
            attribute(base, target, pairs, label="x", steps=2, checkpoint=file, **changes)
    with pytest.raises(WeightsError, match="begun with another target"):
        attribute(base, moved(base), pairs, label="x", steps=2, checkpoint=file)
    with pytest.raises(ImageError, match="image 1 is not the image that the checkpoint has at place 1"):
        attribute(base, target, pairs[::-1], label="x", steps=2, checkpoint=file)
    with pytest.raises(OutputError, match=r"no-such-folder.* cannot be written"):
        attribute(base, target, pairs, label="x", steps=2, checkpoint=tmp_path / "no-such-folder" / "x.st")
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match="no checkpoint of an attribution"):
        attribute(base, target, pairs, label="x", steps=2, checkpoint=file)


class Root(Layers):
    """Ends in a root, whose gradient at zero is infinite."""

    def forward(self, degraded):
        return self.layers(degraded * (degraded > 0)).abs().sqrt()


def test_a_gradient_that_is_no_number_names_image_and_weight_and_keeps_what_was_done(tmp_path):
    base = Root(nn.Conv2d(3, 3, 3, padding=1, bias=False)).double()
    pairs = images(2)
    bad = (torch.zeros(1, 3, 16, 19, dtype=torch.float64), pairs[0][1], "night.png")
    file = tmp_path / "state.safetensors"
    with pytest.raises(RestoreKitError, match=r"night.png: the gradient of layers.0.weight is not finite"):
        attribute(base, moved(base, 1.0), [*pairs, bad], label="x", steps=2, checkpoint=file)
    kept = attribute(base, moved(base, 1.0), pairs, label="x", steps=2, checkpoint=file, progress=cut_off(1))
    assert kept.images == 2


@pytest.mark.parametrize("steps", ["auto", 2])
def test_a_loss_that_is_no_number_names_the_image_and_keeps_what_was_done(tmp_path, steps):
    base, target = both("srcnn")
    pairs, file = images(3, 2, 8), tmp_path / "state.safetensors"

    def own(restored, clean):
        # No gradient tells of the last image: it is that of a constant.
        return sse(restored, clean) + (torch.inf if torch.equal(clean, pairs[2][1]) else 0)

    with pytest.raises(RestoreKitError, match="image 3: the loss is inf at 0 of the way from target to base"):
        attribute(base, target, pairs, label="x", steps=steps, loss=own, checkpoint=file)
    kept = attribute(base, target, pairs[:2], label="x", steps=steps, loss=own, checkpoint=file)
    assert kept.images == 2
    with pytest.raises(RestoreKitError, match="image 1: the loss is inf"):
        attribute(base, target, pairs[2:], label="x", steps=steps, loss=own)


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (lambda restored, clean: float(sse(restored, clean)), "float, not a tensor of one number"),
        (
            lambda restored, clean: (restored - clean).square(),
            r"of shape \(1, 3, .*\), not a tensor of one",
        ),
    ],
)
def test_a_loss_that_is_not_one_number_is_refused(loss, found):
    base, target = both("srcnn")
    with pytest.raises(RestoreKitError, match=f"the loss returns {found}"):
        attribute(base, target, images(1, 2, 8), label="x", steps=2, loss=loss)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_also_where_the_caller_takes_none(mode):
    expected = attribute(*both("srcnn"), images(1, 2, 8), label="x", steps=2)
    with mode():
        found = attribute(*both("srcnn"), images(1, 2, 8), label="x", steps=2)
    assert torch.equal(found.values, expected.values)


def test_pairs_that_do_not_fit_are_named():
    base, target = both("srcnn")
    good = images(1, 2, 8)[0]
    degraded, clean = good
    for wrong, message in (
        ((degraded, clean[..., :-1]), r"image 2: degraded is 11 x 8 and clean 21 x 16, expected .* 22 x 16"),
        ((degraded[:, :1], clean), r"image 2: the degraded image has 1 channels, SRCNN expects 3"),
        ((degraded.expand(2, -1, -1, -1), clean), r"image 2: .* one image at a time|shape \(2, 3, 8, 11\)"),
        ((degraded * float("nan"), clean, "x.png"), r"x.png: the degraded image holds NaN"),
        ((degraded[..., :0, :], clean[..., :0, :], "x.png"), r"x.png: the degraded image is empty: 11 x 0"),
        ((degraded,), r"image 2 is no pair[\s\S]*give \(degraded, clean\)"),
        (7, r"image 2 is no pair"),
        ((degraded.numpy(), clean, "x.png"), r"x.png: ndarray is given instead of a tensor"),
    ):
        with pytest.raises(ImageError, match=message):
            attribute(base, target, [good, wrong], label="x", steps=1)
    with pytest.raises(ImageError, match="no images"):
        attribute(base, target, [], label="x", steps=1)


def test_levels_of_eight_bits_are_no_images():
    base, target = both("srcnn")
    ((degraded, clean),) = images(1, 2, 8)
    levels = (degraded * 255, clean * 255)
    for pair, what in ((levels, "degraded"), ((degraded, levels[1]), "clean")):
        message = rf"image 1: the {what} image holds values from .* to 25\d"
        with pytest.raises(ImageError, match=message) as told:
            attribute(base, target, [pair], label="x", steps=1)
        assert "divide 8-bit levels by 255" in told.value.hint
    whole = ((degraded * 255).to(torch.uint8), (clean * 255).to(torch.uint8))
    with pytest.raises(ImageError, match="the degraded image holds values from"):
        attribute(base, target, [whole], label="x", steps=1)
    # Noise of sigma 255, all the range that there is, is still an image.
    noise = torch.randn(degraded.shape, generator=torch.Generator().manual_seed(0), dtype=degraded.dtype)
    assert attribute(base, target, [(degraded + noise, clean)], label="x", steps=1).values.any()


@pytest.mark.parametrize("method", ["faig", "ig", "gradxdelta"])
@pytest.mark.parametrize("pairs", [[], iter(())])
def test_without_images_there_is_nothing_to_go_on_from(method, pairs, tmp_path):
    base, target = both("srcnn")
    file = tmp_path / "state.safetensors"
    with pytest.raises(ImageError, match="there are no images to attribute with"):
        rank(method, base, target, pairs, label="x", checkpoint=file)
    # Steps that were looked for on no image would be taken for all that come later.
    assert not file.exists()


@pytest.mark.parametrize("tolerance", [float("nan"), -0.1, "0.02", None])
def test_a_tolerance_that_cannot_be_reached_is_refused(tolerance):
    base, target = both("srcnn")
    for steps in ("auto", 2):
        with pytest.raises(RestoreKitError, match=f"completeness error of {tolerance!r} cannot be reached"):
            attribute(base, target, images(1, 2, 8), label="x", steps=steps, tolerance=tolerance)


@pytest.mark.parametrize("which", ["base", "target"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_change_of_weights_that_are_no_numbers_is_refused(which, value):
    networks = dict(zip(("base", "target"), both("srcnn"), strict=True))
    with torch.no_grad():
        networks[which].features[2].weight[0, 0, 0, 0] = value
    with pytest.raises(WeightsError, match=rf"features\.2\.weight of the {which} holds NaN or infinity"):
        rank("delta", **networks, label="x")


@pytest.mark.parametrize("steps", ["foo", "16", 2.5, None, 0])
@pytest.mark.parametrize("method", ["faig", "ig"])
def test_steps_that_are_no_number_are_refused(method, steps):
    base, target = both("srcnn")
    with pytest.raises(RestoreKitError, match=rf"a path of {steps!r} steps cannot be walked"):
        rank(method, base, target, images(1, 2, 8), label="x", steps=steps)


@pytest.mark.parametrize("method", ["faig", "ig"])
def test_steps_of_numpy_are_numbers_in_files_too(method, tmp_path):
    base, target = both("srcnn")
    found = rank(method, base, target, images(1, 2, 8), label="x", steps=np.int64(2))
    assert FilterScores.load(found.save(tmp_path / "x.safetensors")).details["steps"] == 2


def test_an_unknown_unit_is_refused():
    base, target = both("srcnn")
    with pytest.raises(ConfigError, match="unit: is 'foo'"):
        attribute(base, target, images(1, 2, 8), label="x", unit="foo")


def test_networks_that_do_not_fit_are_refused():
    base, target = both("srcnn")
    pairs = images(1, 2, 8)
    with pytest.raises(WeightsError, match=r"features.0.weight is \(5, 3, 3, 3\) in the target, \(6, 3"):
        attribute(base, type(base)(widths=[5, 8, 8], scale=2).double(), pairs, label="x")
    short = {key: value for key, value in base.state_dict().items() if key != "features.0.bias"}
    with pytest.raises(WeightsError, match=r"features.0.bias is missing from the base"):
        attribute(short, target, pairs, label="x")
    with pytest.raises(RestoreKitError, match="the same weights"):
        attribute(base, copy.deepcopy(base), pairs, label="x")
    with pytest.raises(RestoreKitError, match="no convolution"):
        attribute(Layers(nn.LayerNorm(3)), Layers(nn.LayerNorm(3)), pairs, label="x")
    with pytest.raises(RestoreKitError, match="no rule called 'simpson'"):
        attribute(base, target, pairs, label="x", rule="simpson")
    with pytest.raises(RestoreKitError, match="a path of 0 steps"):
        attribute(base, target, pairs, label="x", steps=0)
    with pytest.raises(RestoreKitError, match="depends on no weight"):
        attribute(base, target, pairs, label="x", steps=1, loss=lambda one, two: one.detach().sum())
