import numpy as np
import pytest
import torch

from restorekit import load_pipeline, restore
from restorekit.contracts import Prior, PriorFeatures
from restorekit.errors import ConfigError, ContractError
from restorekit.featurecache import CachedPrior
from restorekit.testing import check_prior


class Counting(Prior):
    """Describe an image by its mean colours, and count what it is asked."""

    features = 3
    library = "acme 1.0"

    def __init__(self, mark: str = "one") -> None:
        super().__init__()
        self.mark, self.asked = mark, []

    @property
    def fingerprint(self) -> str:
        return self.mark

    def forward(self, image):
        self.asked.append(len(image))
        dense = torch.nn.functional.avg_pool2d(image, 8, ceil_mode=True)
        return PriorFeatures(dense.mean((2, 3)), dense, 8)


class Silent(Counting):
    fingerprint = ""


class Cached(CachedPrior):
    def __init__(self) -> None:
        super().__init__(Counting())


def images(count=2, seed=0):
    return torch.rand(count, 3, 16, 24, generator=torch.Generator().manual_seed(seed))


def test_contract_is_kept():
    check_prior(Cached)


def test_an_image_is_computed_once_in_this_process_and_the_next(tmp_path):
    prior = Counting()
    cached = CachedPrior(prior, tmp_path)
    expected = Counting()(images())
    for _ in range(2):
        features = cached(images())
        assert torch.equal(features.glob, expected.glob) and torch.equal(features.dense, expected.dense)
        assert features.stride == 8
    assert prior.asked == [2]
    again = CachedPrior(Counting(), tmp_path)
    assert torch.equal(again(images()).dense, expected.dense)
    assert (again.computed, cached.computed) == (0, 2)


def test_only_the_images_of_a_batch_that_are_new_are_computed():
    prior = Counting()
    cached = CachedPrior(prior)
    cached(images())
    both = torch.cat([images(1, seed=1), images()])
    torch.testing.assert_close(cached(both).glob, Counting()(both).glob)
    assert prior.asked == [2, 1]


def test_the_same_image_twice_in_a_batch_is_well():
    twice = images(1).repeat(2, 1, 1, 1)
    torch.testing.assert_close(CachedPrior(Counting())(twice).glob, Counting()(twice).glob)


def test_memory_keeps_those_that_were_used_last():
    prior = Counting()
    cached = CachedPrior(prior, in_memory=2)
    for seed in (0, 1, 0, 2, 0, 1):
        cached(images(1, seed))
    assert len(prior.asked) == 4
    assert cached(images(3)).glob.shape == (3, 3)


def test_another_prior_library_or_size_is_another_key(tmp_path):
    CachedPrior(Counting("one"), tmp_path)(images())
    for prior in (Counting("two"), Counting("one")):
        prior.library = "acme 2.0"
        cached = CachedPrior(prior, tmp_path)
        cached(images())
        assert cached.computed == 2
    cached(images().reshape(2, 3, 24, 16))
    assert cached.computed == 4


def test_half_precision_gives_the_same_the_first_time_and_later(tmp_path):
    first = CachedPrior(Counting(), tmp_path, half=True)(images())
    later = CachedPrior(Counting(), tmp_path, half=True)(images())
    assert torch.equal(first.dense, later.dense) and first.dense.dtype == torch.float32
    torch.testing.assert_close(first.dense, Counting()(images()).dense, rtol=2**-11, atol=0)
    sizes = {path.stat().st_size for path in tmp_path.rglob("*.safetensors")}
    assert len(sizes) == 1


def test_dense_features_can_be_left_out(tmp_path):
    cached = CachedPrior(Counting(), tmp_path, dense=False)
    assert cached(images()).dense is None
    assert CachedPrior(Counting(), tmp_path, dense=False)(images()).dense is None


def test_a_damaged_file_is_computed_again_and_nothing_is_left_half_written(tmp_path):
    CachedPrior(Counting(), tmp_path)(images(1))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(b"torn")
    cached = CachedPrior(Counting(), tmp_path)
    cached(images(1))
    assert cached.computed == 1 and list(tmp_path.rglob("*.safetensors")) == [file]
    assert CachedPrior(Counting(), tmp_path)(images(1)).stride == 8


def test_an_image_that_asks_for_gradients_is_computed_anew():
    cached = CachedPrior(Counting())
    image = images(1).requires_grad_()
    assert cached(image).glob.requires_grad
    assert cached.computed == 1
    with torch.no_grad():
        cached(image)
        cached(image)
    assert cached.computed == 2


def test_a_prior_that_does_not_say_what_it_depends_on_is_refused():
    with pytest.raises(ConfigError, match="Silent does not say what its features depend on"):
        CachedPrior(Silent())


def test_features_that_are_no_numbers_are_refused_and_not_kept(tmp_path):
    class Broken(Counting):
        def forward(self, image):
            return PriorFeatures(super().forward(image).glob * float("nan"))

    cached = CachedPrior(Broken(), tmp_path)
    for _ in range(2):
        with pytest.raises(ContractError, match="prior Broken returned values that are not finite"):
            cached(images())
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("tile", [0, 128])
def test_a_pipeline_asks_once_for_an_image_however_it_is_cut(strangers, tile):
    step = {"refine": {"name": "blend", "prior": "brightness"}}
    pipeline = load_pipeline({"steps": [step]})
    prior = Counting()
    pipeline.steps[0].prior = CachedPrior(prior)
    image = np.random.default_rng(0).random((200, 300, 3), dtype=np.float32)
    for _ in range(2):
        restore(image, pipeline, tile=tile)
    assert prior.asked == [1]
