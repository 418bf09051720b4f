"""What finds out which filters are to act: the classifier and the other routers."""

import pytest
import torch
from adms_cases import KINDS, SMALL, adapter_of, bits, images, network_of, same
from safetensors.torch import save_file
from torch.nn import functional

from restorekit.config import PipelineSpec
from restorekit.contracts import Verdict
from restorekit.errors import ConfigError, RestoreKitError
from restorekit.image import Image
from restorekit.pipeline import Pipeline
from restorekit.tiling import Tiler, pad_to_multiple
from restorekit_adms.adapter import Adms
from restorekit_adms.classifier import Classifier, _details
from restorekit_adms.routing import RouterChoice, checked


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def test_classifier_has_the_parameters_that_are_stated():
    with torch.device("meta"):
        assert sum(p.numel() for p in Classifier(3).parameters()) == 47_883


def test_classifier_sees_details_a_level_apart_and_none_where_an_image_is_flat():
    image = torch.full((1, 3, 20, 31), 60, dtype=torch.float64)
    assert not _details(image).abs().gt(1e-9).any()
    image[..., 7, 11] += 9 / 8
    details = _details(image)[0, 0]
    torch.testing.assert_close(details[7, 11].sinh(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("size", [(20, 31), (1, 9), (2, 1)])
def test_details_are_what_of_the_gray_image_is_no_mean_of_its_neighbours(size):
    levels = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0)).double()
    gray = levels.mean(1, keepdim=True)
    smooth = functional.avg_pool2d(gray, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(_details(levels), torch.asinh(gray - smooth))


@pytest.mark.parametrize("widths", [(48, 64, 96, 96, 128), (8, 12, 16)])
@pytest.mark.parametrize("size", [(97, 130), (64, 64), (31, 200)])
@pytest.mark.parametrize("pooling", ["mean", "statistics"])
def test_classifier_sees_a_large_image_strip_by_strip_to_the_same_result(size, widths, pooling, monkeypatch):
    torch.manual_seed(0)
    classifier = Classifier(3, widths, pooling).double().eval()
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    whole = classifier(x)
    monkeypatch.setattr("restorekit_adms.classifier._PIECE", 32 * size[1])
    torch.testing.assert_close(classifier(x), whole, rtol=1e-12, atol=1e-12)


@torch.enable_grad()
def test_classifier_goes_by_more_than_the_mean():
    torch.manual_seed(0)
    classifier = Classifier(3, pooling="statistics")
    x = torch.zeros(2, 3, 64, 64)
    x[0, :, :32], x[1] = 1, 0.5
    with torch.no_grad():
        classifier.head.weight[:, : classifier.head.in_features // 3] = 0
    logits = classifier(x)
    assert not torch.allclose(*logits, atol=1e-3)
    logits.sum().backward()
    # The deviation of a feature that is the same everywhere has no gradient, not an infinite one.
    assert all(each.grad.isfinite().all() for each in classifier.parameters())


def test_classifier_looks_at_the_smallest_image():
    assert Classifier(3, pooling="statistics").eval()(torch.rand(2, 3, 1, 1)).isfinite().all()


@torch.enable_grad()
def test_classifier_that_is_differentiated_leaves_images_without_a_gradient():
    classifier = Classifier(3)
    x = torch.rand(1, 3, 16, 16, requires_grad=True)
    classifier(x).sum().backward()
    assert x.grad is None and classifier.features[0].weight.grad is not None


def test_classifier_sees_an_image_of_more_bits_as_an_8_bit_file_has_it():
    torch.manual_seed(0)
    classifier = Classifier(3).eval()
    fine = torch.rand(1, 3, 40, 50) * 1.2 - 0.1
    assert torch.equal(classifier(fine), classifier((fine * 255).round().clamp(0, 255) / 255))


def test_classifier_looks_once_at_the_whole_image_and_never_at_tiles():
    network = network_of()
    _, adaptive = adapter_of(network, router="classifier")
    seen = []
    adaptive.adapter.classifier.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].shape)
    )
    x = pad_to_multiple(images(network, side=200), network.size_multiple, network.padding)
    act = adaptive.for_image(x, 128)
    tiled = Tiler(128, 64)(act, x, multiple=network.size_multiple)
    assert seen == [x.shape]
    adaptive.set_adapter(dict(act.verdict.shares))
    assert (tiled - adaptive(x)).abs().max() < 1e-3 * tiled.std()


def test_temperature_mixes_and_top1_decides():
    network = network_of()
    adapter, adaptive = adapter_of(network, router="classifier", none="clean")
    x = images(network, 3)
    sharp = adaptive.judge(x)[0]
    adapter.temperature = 100.0
    soft = adaptive.judge(x)[0]
    assert sharp.shape == (3, 3) and (soft.max(1).values < sharp.max(1).values).all()
    assert torch.allclose(soft.sum(1), torch.ones(3))
    adapter.top1 = True
    assert set(adaptive.weights(x).flatten().tolist()) <= {0.0, 1.0}
    assert adaptive.weights(x).shape == (3, 2), "the kind without filters has no weight"


def test_a_share_below_the_least_leaves_the_image_to_the_base():
    network = network_of()
    adapter, adaptive = adapter_of(network, router="classifier", none="clean", top1=True)
    x = images(network, 4)
    first = adaptive.weights(x)
    shares = adaptive.judge(x)[0].amax(1)
    adapter.least = float(shares.sort().values[1:3].mean())
    sure = (shares >= adapter.least).to(first.dtype)
    assert sure.sum() == 2 and torch.equal(adaptive.weights(x), first * sure[:, None])
    verdicts = [adaptive.for_image(x[row : row + 1], 0).verdict for row in range(4)]
    assert [verdict.sure for verdict in verdicts] == sure.bool().tolist()
    assert sorted("too little to act by" in str(verdict) for verdict in verdicts) == [
        False,
        False,
        True,
        True,
    ]
    with pytest.raises(ConfigError, match=r"without top1 every share acts\n.*top1: true, too, or least: 0"):
        adapter_of(network_of(), least=0.5)
    with pytest.raises(ConfigError, match="is no share"):
        adapter_of(network_of(), top1=True, least=1.5)


@pytest.mark.parametrize(
    ("router", "mixes"), [("uniform", True), ("overlap", False), ({"name": "oracle", "label": "blur"}, False)]
)
def test_only_what_looks_at_the_image_is_decided_and_only_the_classifier_can_be_unsure(router, mixes):
    network = network_of()
    x = images(network)
    _, adaptive = adapter_of(network, router=router, top1=True, least=0.9)
    found = adaptive.for_image(x, 0).verdict
    assert found.sure and adaptive.weights(x).sum() == 1
    assert set(adaptive.weights(x).flatten().tolist()) == ({0.5} if mixes else {0.0, 1.0})


def test_routers_say_what_they_should():
    network = network_of()
    x = images(network, 2)
    _, adaptive = adapter_of(network, router="uniform", none="clean")
    assert torch.allclose(adaptive.judge(x)[0], torch.full((2, 3), 1 / 3))
    _, adaptive = adapter_of(network, router={"name": "oracle", "label": "blur"})
    assert adaptive.judge(x)[0].tolist() == [[0.0, 1.0]] * 2
    assert str(adaptive.for_image(x[:1], 0).verdict) == "blur 100 %"
    _, adaptive = adapter_of(network, router="auto", degradations=["rain"])
    assert adaptive.judge(x)[0].tolist() == [[1.0]] * 2
    _, adaptive = adapter_of(network, router=lambda batch: torch.ones(len(batch), 3))
    with pytest.raises(
        RestoreKitError, match=r"the router returned \(2, 3\) for 2 images, expected \(2, 2\)"
    ):
        adaptive(x)
    _, adaptive = adapter_of(network, router=lambda batch: torch.full((len(batch), 2), torch.nan))
    with pytest.raises(RestoreKitError, match="not finite"):
        adaptive(x)


@pytest.mark.parametrize("router", ["auto", "uniform"])
def test_merged_and_disabled_networks_ask_no_router(router):
    network = network_of()
    adapter, adaptive = adapter_of(network, router=router)
    x = images(network)
    expected = network(x)
    adapter.top1 = True
    with adaptive.disable_adapter():
        assert torch.equal(adaptive(x), expected)
        assert adaptive.for_image(x, 0).verdict == Verdict({"rain": 0.0, "blur": 0.0}, "disabled")
        assert str(adaptive.for_image(x, 0).verdict) == "nothing (disabled)"
        assert adaptive.weights(x).tolist() == [[0.0, 0.0]]
    adaptive.merge_adapter({"rain": 0.5})
    assert torch.equal(adaptive(x), network(x)) and not torch.equal(network(x), expected)
    assert adaptive.for_image(x, 24).verdict == Verdict({"rain": 0.5, "blur": 0.0}, "merged")
    adaptive.unmerge_adapter()
    adaptive.set_adapter("blur")
    assert adaptive.for_image(x, 0).verdict.source == "user"


def test_router_by_overlap_refuses_filters_that_no_router_chooses():
    network = network_of()
    adapter, adaptive = adapter_of(network, router="overlap")
    adapter.combined = tuple(KINDS)
    with pytest.raises(RestoreKitError, match="all filters were combined"):
        adaptive(images(network))


def test_router_by_overlap_refuses_an_image_whose_gradient_is_not_finite(monkeypatch):
    network = network_of()
    _, adaptive = adapter_of(network, router={"name": "overlap", "steps": 2})
    plain = type(network).forward
    # Finite at zero, but the gradient of a square root is not.
    monkeypatch.setattr(type(network), "forward", lambda self, x: (0 * plain(self, x)).abs().sqrt())
    with pytest.raises(RestoreKitError, match="gradient is not finite"):
        adaptive.judge(images(network))


def test_router_by_overlap_needs_no_classifier_and_leaves_no_trace():
    network = network_of()
    _, adaptive = adapter_of(network, router={"name": "overlap", "steps": 2})
    before, x = bits(network), images(network, 2)
    with torch.inference_mode():
        shares, source = adaptive.judge(x)
    assert source == "overlap" and shares.shape == (2, 2) and torch.allclose(shares.sum(1), torch.ones(2))
    assert same(bits(network), before)


def test_router_by_overlap_says_the_same_wherever_the_network_was_moved_or_laid_out_anew():
    network = network_of()
    _, adaptive = adapter_of(network, router={"name": "overlap", "steps": 2})
    x = images(network, 2)
    expected = adaptive.judge(x)[0]
    adaptive.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(adaptive.judge(x)[0], expected)
        adaptive.double()
        torch.testing.assert_close(adaptive.judge(x)[0], expected, check_dtype=False, atol=0.1, rtol=0)
    with torch.enable_grad():
        assert torch.allclose(adaptive.judge(x)[0].sum(1), torch.ones(2))


def test_router_by_overlap_judges_in_a_pipeline(tmp_path):
    network = network_of()
    adapter, adaptive = adapter_of(network)
    save_file(network.state_dict(), tmp_path / "base.safetensors")
    weights = adapter.save(tmp_path / "adms.safetensors")
    step = {
        "name": "nafnet",
        "params": SMALL["nafnet"],
        "weights": str(tmp_path / "base.safetensors"),
        "adapter": {"name": "adms", "weights": str(weights), "params": {"router": "overlap"}},
    }
    pipeline = Pipeline.build(PipelineSpec.load({"steps": [{"restore": step}]}), "cpu")
    image = images(network)
    verdict = pipeline(Image(image[0])).verdict
    adapter.router = RouterChoice.of("overlap")
    assert verdict.source == "overlap" and sum(verdict.shares.values()) == pytest.approx(1)
    assert list(verdict.shares.values()) == pytest.approx(adaptive.judge(image)[0][0].tolist(), abs=1e-3)


@pytest.mark.parametrize("router", ["clasifier", {"name": "oracle"}, {"name": "uniform", "label": "x"}, 3])
def test_router_that_makes_no_sense_is_refused(router):
    with pytest.raises(ConfigError, match=r"params\.router"):
        Adms(["rain"], router=router)


@pytest.mark.parametrize(
    ("router", "problem"),
    [
        ({"name": "oracle", "label": 3}, r"params\.router\.label: 3 is not a name"),
        (
            {"name": "overlap", "steps": "many"},
            r"params\.router\.steps: 'many' is not a whole number above 0",
        ),
        ({"name": "overlap", "steps": 0}, r"params\.router\.steps: 0"),
        ({"name": "overlap", "steps": 2.5}, r"params\.router\.steps: 2\.5"),
        ({"name": "overlap", "steps": True}, r"params\.router\.steps: True"),
        ({"name": "overlap", "temperature": 0}, r"params\.router\.temperature: 0 is not a number above 0"),
        ({"name": "overlap", "temperature": 1e-50}, r"params\.router\.temperature: 1e-50"),
        ({"name": "overlap", "temperature": float("inf")}, r"params\.router\.temperature: inf"),
        ({"name": "overlap", "temperature": None}, r"params\.router\.temperature: None"),
        ({"name": "overlap", "ratio": 5}, r"params\.router\.ratio: 5 is not a share above 0, up to 1"),
        ({"name": "overlap", "ratio": float("nan")}, r"params\.router\.ratio: nan"),
    ],
)
def test_option_of_a_router_that_makes_no_sense_is_refused_by_its_name(router, problem):
    with pytest.raises(ConfigError, match=problem):
        Adms(["rain"], router=router)


def test_options_of_a_router_that_make_sense_are_kept():
    options = {"steps": 1, "ratio": 1, "temperature": 0.5}
    assert Adms(["rain"], router={"name": "overlap", **options}).router.options == options


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        ([[0.5, 0.5]], "returned list, expected a tensor of shares"),
        (None, "returned NoneType, expected a tensor"),
        (torch.ones(1, 2, dtype=torch.complex64), r"returned torch\.complex64"),
        (torch.tensor([[-3, 9]]), "returned -3, 9 for an image, which are no shares"),
        (torch.tensor([[1.5, -0.5]]), "returned 1.5, -0.5 for an image"),
        (torch.tensor([[0.5, 0.4]]), "returned 0.5, 0.4 for an image"),
        (torch.zeros(1, 2), "returned 0, 0 for an image"),
    ],
)
def test_function_that_returns_no_shares_is_refused_as_a_router(returned, problem):
    _, adaptive = adapter_of(network_of(), router=lambda batch: returned)
    with pytest.raises(RestoreKitError, match=problem):
        adaptive(images(adaptive))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16, torch.float64])
def test_function_may_return_shares_in_any_precision(dtype):
    network = network_of()
    _, adaptive = adapter_of(network, router=lambda batch: torch.tensor([[0, 1]], dtype=dtype))
    _, told = adapter_of(network, router={"name": "oracle", "label": "blur"})
    assert torch.equal(adaptive(images(network)), told(images(network)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_shares_that_a_precision_rounds_are_shares(dtype):
    kinds = [f"kind{number}" for number in range(100)]
    shares = torch.randn(50, 100, generator=torch.Generator().manual_seed(0)).softmax(1).to(dtype)
    assert checked(shares, torch.zeros(50), kinds) is shares
