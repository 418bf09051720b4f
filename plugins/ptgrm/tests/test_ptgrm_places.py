"""Windows of an image: their prior and their coordinates are the image's, in the network and its training."""

import pytest
import torch
from guides import SEEN, Deep, install
from ptgrm_cases import built, doubled, every_variant, given
from test_ptgrm_training import training
from torch.nn.functional import leaky_relu

from restorekit.contracts import PriorFeatures
from restorekit.errors import TrainingError
from restorekit.tiling import Tiler, pad_to_multiple
from restorekit.training.build import build_networks
from restorekit.training.loop import prepare
from restorekit_ptgrm.guidance import SLOPE, Guide, PositionEmbedding
from restorekit_ptgrm.network import PTGRM
from restorekit_ptgrm.strips import Strip, Work


@pytest.fixture(autouse=True)
def guides(tmp_path_factory, monkeypatch):
    monkeypatch.syspath_prepend(str(install(tmp_path_factory.mktemp("site"))))
    SEEN.clear()


def shares(*places):
    """Return windows given as top, left, bottom, right in pixels of an image of 40 x 56 latent pixels."""
    return torch.tensor(places, dtype=torch.float64) / torch.tensor([40, 56, 40, 56])


@every_variant
def test_a_whole_image_lies_from_0_to_1(params):
    network, images = built(**params).double(), doubled(given(batch=2))
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(2, -1)
    torch.testing.assert_close(network(*images, whole), network(*images), rtol=0, atol=1e-6)


def test_coordinates_go_from_minus_1_to_1_over_the_image():
    embedding = PositionEmbedding(2).double()
    with torch.no_grad():
        embedding.first.weight.zero_()[:, :, 1, 1] = torch.eye(2)
        embedding.second.weight.zero_()[:, :, 0, 0] = torch.eye(2)
        seen = embedding(Strip(0, 3, 3), 5, 0, None)[0]
    for coordinates, side in ((seen[0, :, 0], 3), (seen[1, 0], 5)):
        expected = leaky_relu(torch.linspace(-1, 1, side).double(), SLOPE)
        torch.testing.assert_close(coordinates, expected)
    assert embedding(Strip(0, 1, 1), 1, 0, None).isfinite().all()


def test_embedded_positions_of_windows_are_those_of_the_image_at_every_border():
    torch.manual_seed(0)
    embedding = PositionEmbedding(4).double()
    whole = embedding(Strip(0, 40, 40), 56, 0, None)[0]
    corners = [(0, 0), (28, 40), (7, 13), (0, 40), (28, 0)]
    places = shares(*[(top, left, top + 12, left + 16) for top, left in corners])
    windows = embedding(Strip(0, 12, 12), 16, 0, places)
    for (top, left), window in zip(corners, windows, strict=True):
        torch.testing.assert_close(window, whole[:, top : top + 12, left : left + 16])
    torch.testing.assert_close(embedding(Strip(4, 8, 12), 16, 2, places), windows[:, :, 2:10])
    assert not torch.allclose(windows[0], windows[1])


def test_dense_map_of_windows_is_that_of_the_image():
    dense = torch.rand(1, 3, 6, 9, dtype=torch.float64)
    whole = Guide(torch.zeros(1, 1)).cut(dense, 40, 56)
    for place in ((0, 0, 12, 16), (28, 40, 40, 56), (7, 13, 19, 29)):
        top, left, bottom, right = place
        window = Guide(torch.zeros(1, 1), places=shares(place)).cut(dense, 12, 16)
        torch.testing.assert_close(window, whole[:, :, top:bottom, left:right])


def test_inside_a_window_features_are_those_of_the_image():
    """Where no sums are taken: these are over the window, as they were in training."""
    network = built(long_blocks=0, channel_attention="none", dense_features=5, concatenation="map").double()
    latent = torch.rand(1, 16, 40, 56, dtype=torch.float64)
    prior = doubled(given())[2]
    with torch.no_grad():
        whole, maps = network._guided(latent, network._guide(prior, None, 1), None, Work())
        top, left, bottom, right = place = (8, 20, 32, 52)
        window = latent[:, :, top:bottom, left:right]
        part, _ = network._guided(window, network._guide(prior, shares(place), 1), None, Work())
        lost, _ = network._guided(window, network._guide(prior, None, 1), None, Work())
    inner = (..., slice(8, -8), slice(8, -8))
    expected = whole[:, :, top:bottom, left:right][inner]
    torch.testing.assert_close(part[inner], expected)
    assert (lost[inner] - expected).abs().max() > 1e-4
    assert maps["M"].std() > 0


def _starts(tiles):
    return {rows.start for rows, _ in tiles}, {columns.start for _, columns in tiles}


def test_sums_are_taken_over_windows_where_that_is_asked_for():
    images = doubled(given(height=64, width=64))
    whole, small = built().double(), built(window=64).double()
    # An image that is not larger is one window.
    torch.testing.assert_close(small(*images), whole(*images))
    degraded, restored, prior = doubled(given(height=90, width=150))
    local = built(window=48).double()
    refined = local(degraded, restored, prior)
    assert refined.shape == degraded.shape
    assert (refined - whole(degraded, restored, prior)).abs().max() > 1e-3
    tiles = Tiler(48, 12, keep=True).windows(92, 152, 4)
    assert {(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in tiles} == {(48, 48)}
    # What of the first window no other one shares.
    beyond = [min(begin for begin in starts if begin) for starts in _starts(tiles)]
    (rows, columns), padded = (
        tiles[0],
        (pad_to_multiple(image, 4, "reflect") for image in (degraded, restored)),
    )
    place = torch.tensor([[0, 0, rows.stop / 92, columns.stop / 152]], dtype=torch.float64)
    first = whole(*(image[:, :, rows, columns] for image in padded), prior, place)
    inner = (..., slice(0, beyond[0]), slice(0, beyond[1]))
    torch.testing.assert_close(refined[inner], first[inner])
    parts = local.refine_in_parts(degraded, restored, prior, 32)
    torch.testing.assert_close(parts, refined)
    # What is trained is what there is.
    local.train()
    torch.testing.assert_close(local(degraded, restored, prior), whole(degraded, restored, prior))


@pytest.mark.parametrize("channels", [1, 6])
def test_windows_of_gray_images_and_of_two_views_have_their_channels(channels):
    network = built(channels=channels, window=32)
    restored = 1 if channels == 1 else 3
    images = torch.rand(2, channels, 50, 41), torch.rand(2, restored, 50, 41)
    with torch.no_grad():
        assert network(*images, given(batch=2)[2]).shape == (2, restored, 50, 41)


LEVELS = {
    "image": {"trained": ["refiner", "backbone"]},
    "frozen image": {},
    "features": {
        "refiner": {"name": "ptgrm", "params": {"level": "feature"}},
        "trained": ["refiner", "backbone"],
    },
    "frozen features": {"refiner": {"name": "ptgrm", "params": {"level": "feature"}}},
}


@pytest.mark.parametrize("context", [48, "whole"])
@pytest.mark.parametrize("level", LEVELS)
def test_training_asks_the_prior_of_the_scenes_that_patches_are_parts_of(tmp_path, level, context):
    stages = [{"steps": 2, "patch": 32, "batch": 2, "context": context}]
    (tmp_path / "mark").write_text("one")
    prior = {"name": "filed", "params": {"file": str(tmp_path / "mark")}}
    run = prepare(training(tmp_path, **{**LEVELS[level], "prior": prior, "stages": stages}), tmp_path / "run")
    trainee, batch = run.networks.trainee, run.batches.batch(0, run.spec.stages[0])
    torch.manual_seed(1)
    for name, parameter in trainee.refiner.named_parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) * ("norm" not in name)
    SEEN.clear()
    with torch.no_grad():
        placed = trainee(batch.degraded, batch.kinds, batch.scenes, batch.places).images[0]
        sizes = batch.places[:, 2:].long().tolist()
        assert ([(2, 3, 48, 48)] if context == 48 else [(1, 3, *size) for size in sizes]) == SEEN
        scenes = [one[None, :, : size[0], : size[1]] for one, size in zip(batch.scenes, sizes, strict=True)]
        glob = PriorFeatures(torch.cat([trainee.prior.guidance(one).glob for one in scenes]))
        start = batch.places[:, :2] / batch.places[:, 2:]
        where = torch.cat([start, start + 32 / batch.places[:, 2:]], 1)
        if trainee.network is None:
            expected = trainee.refiner(batch.degraded, trainee.backbone(batch.degraded), glob, where)
            local = trainee.refiner(batch.degraded, trainee.backbone(batch.degraded), glob)
        else:
            expected = trainee.network.under(glob, where)(batch.degraded)
            local = trainee.network.under(glob)(batch.degraded)
    torch.testing.assert_close(placed, expected)
    assert not torch.allclose(placed, local, atol=1e-6)
    run.train()
    assert run.progress.step == 2


def test_a_refiner_of_no_places_is_told_none(tmp_path, monkeypatch):
    stages = [{"steps": 1, "patch": 32, "batch": 2, "context": 48}]
    trainee = build_networks(training(tmp_path, stages=stages)).trainee
    monkeypatch.setattr(trainee.refiner, "placed", False, raising=False)
    degraded, scenes = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 48, 48)
    places = torch.tensor([[0.0, 0, 48, 48], [16, 16, 48, 48]])
    with torch.no_grad():
        untold = trainee(degraded, None, scenes, places).images[0]
        expected = trainee.refiner(degraded, trainee.backbone(degraded), trainee.prior.guidance(scenes))
    torch.testing.assert_close(untold, expected)


@pytest.mark.parametrize("level", ["image", "features"])
def test_maps_of_whole_photographs_are_refused(tmp_path, level):
    stages = [{"steps": 2, "patch": 32, "batch": 2, "context": "whole"}]
    refiner = {"name": "ptgrm", "params": {"concatenation": "map"}}
    with pytest.raises(TrainingError, match="PTGRM may take the prior's maps"):
        build_networks(training(tmp_path, refiner=refiner, stages=stages))


def test_a_refiner_inside_that_asks_its_prior_itself_is_refused_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(PTGRM, "attach", lambda self, backbone, prior: Deep())
    stages = [{"steps": 2, "patch": 32, "batch": 2, "context": 48}]
    refiner = {"name": "ptgrm", "params": {"level": "feature"}}
    with pytest.raises(TrainingError, match=r"attach\(\) returns is no GuidedBackbone"):
        build_networks(training(tmp_path, refiner=refiner, stages=stages))


def test_half_precision_tells_neighbouring_pixels_of_a_large_scene_apart():
    dense = torch.linspace(0, 1, 1000).expand(1, 1, 4, -1)
    place = torch.tensor([[0.0, 0.7, 1.0, 0.71]])
    cut = Guide(torch.zeros(1, 1), places=place).cut(dense.bfloat16(), 4, 64)
    exact = Guide(torch.zeros(1, 1), places=place).cut(dense, 4, 64)
    assert cut.dtype == torch.bfloat16
    torch.testing.assert_close(cut.float(), exact, atol=2**-8, rtol=0)
    ramp = torch.arange(8.0).repeat(125).expand(1, 1, 4, -1)
    assert len(Guide(torch.zeros(1, 1), places=place).cut(ramp.bfloat16(), 4, 64).unique()) > 20


def test_windows_give_back_the_precision_of_the_images():
    network = built(window=32).bfloat16()
    images = [image.bfloat16() for image in given(height=48, width=40)[:2]]
    with torch.no_grad():
        assert network(*images, given()[2]).dtype == torch.bfloat16
