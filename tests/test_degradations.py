"""The laws that degradations follow, and what holds for all of them."""

import inspect
import math

import numpy as np
import pytest
import torch
from test_doors import imported_by

from restorekit import degradations
from restorekit.degradations import FUNCTIONS, KINDS
from restorekit.degradations.blurring import disc_kernel, motion_kernel
from restorekit.degradations.catalogue import STRENGTHS
from restorekit.degradations.drawing import convolve, gaussian_kernel
from restorekit.degradations.light import to_light, to_values

every_kind = pytest.mark.parametrize("name", sorted(FUNCTIONS))
RANDOM = sorted(set(FUNCTIONS) - {"clean", "jpeg", "quantisation", "gaussian_blur", "anisotropic_blur"})
RANDOM = [name for name in RANDOM if name not in ("defocus_blur", "downscale")]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(*shape, seed=7):
    return torch.rand(shape, generator=seeded(seed))


def test_the_catalogue_says_what_the_signatures_say():
    assert list(FUNCTIONS) == list(KINDS)
    for name, function in FUNCTIONS.items():
        signature = inspect.signature(function)
        assert list(signature.parameters)[:2] == ["clean", "generator"], name
        parameters = list(signature.parameters.values())[2:]
        assert all(each.kind is each.KEYWORD_ONLY for each in parameters), name
        # A depth map is a tensor: recipes cannot hold one.
        stated = {each.name: each.default for each in parameters if each.name != "depth"}
        listed = {key: parameter.default for key, parameter in KINDS[name].parameters.items()}
        assert stated == listed, name
        assert all(type(stated[key]) is type(listed[key]) for key in stated), name
        assert name == "clean" or inspect.getdoc(function), name


@every_kind
def test_every_kind_has_summary_source_and_three_strengths(name):
    kind = KINDS[name]
    assert kind.summary and (kind.source or name == "clean")
    assert tuple(kind.strengths) == STRENGTHS
    assert all(set(values) <= set(kind.parameters) for values in kind.strengths.values())
    assert name == "clean" or kind.strengths["mild"] != kind.strengths["severe"]


@every_kind
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 2), (33, 47)])
def test_images_of_any_size_are_degraded(name, size):
    for channels in (1, 3):
        image = picture(channels, *size)
        degraded = FUNCTIONS[name](image, seeded())
        shrunk = tuple(max(1, round(side / 3)) for side in size)
        assert degraded.shape == (channels, *(shrunk if name == "downscale" else size))
        assert torch.isfinite(degraded).all()


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept_and_the_picture_does_not_depend_on_it(name, dtype):
    image = quantised(picture(3, 40, 30))
    usual = FUNCTIONS[name](image, seeded())
    other = FUNCTIONS[name](image.to(dtype), seeded())
    assert other.dtype == dtype
    # What float16 and bfloat16 lose in the image is amplified by noise in the deepest black.
    assert float((other.float() - usual).abs().mean()) < (1e-6 if dtype == torch.float64 else 0.02)


def quantised(image):
    return (image * 16).round() / 16


@every_kind
def test_the_clean_image_is_not_changed(name):
    image = picture(3, 40, 50)
    before = image.clone()
    FUNCTIONS[name](image, seeded())
    assert torch.equal(image, before)


@every_kind
def test_a_seed_repeats_and_a_batch_equals_its_images_in_order(name):
    batch = picture(3, 3, 40, 50)
    generator = seeded(3)
    alone = torch.stack([FUNCTIONS[name](image, generator) for image in batch])
    assert torch.equal(FUNCTIONS[name](batch, seeded(3)), alone)


@pytest.mark.parametrize("name", RANDOM)
def test_another_seed_gives_another_image(name):
    image = picture(3, 160, 160)
    assert not torch.equal(FUNCTIONS[name](image, seeded(1)), FUNCTIONS[name](image, seeded(2)))


@every_kind
def test_the_global_generators_are_not_touched(name):
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    FUNCTIONS[name](picture(3, 20, 20), seeded())
    assert (torch.rand(1), np.random.rand()) == expected


@every_kind
def test_every_kind_gets_stronger_by_its_strengths(name):
    if name in ("clean", "downscale"):
        return
    from restorekit.config import check
    from restorekit.degradations import RecipeSpec, apply, draw

    ramp = torch.linspace(0.1, 0.9, 120).expand(3, 120, 120)
    image = 0.5 * ramp + 0.5 * convolve(picture(3, 120, 120), gaussian_kernel(1, 1, 0))
    errors = []
    for strength in STRENGTHS:
        spec = check(RecipeSpec, {"name": name, "strength": strength}, name)
        degraded = [apply(draw(spec, np.random.default_rng(i)), image, seeded(i)) for i in range(4)]
        errors.append(float((torch.stack(degraded) - image).square().mean()))
    assert 0 < errors[0] < errors[1] < errors[2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@every_kind
def test_a_seed_gives_the_same_picture_on_a_gpu(name):
    image = picture(3, 64, 80)
    there = FUNCTIONS[name](image.cuda(), seeded())
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), FUNCTIONS[name](image, seeded()), atol=1e-4, rtol=0)


def test_gaussian_noise_has_the_mean_and_variance_it_says():
    clean = torch.full((3, 300, 300), 0.1)
    noise = degradations.gaussian(clean, seeded(), sigma=40.0) - clean
    assert float(noise.mean() * 255) == pytest.approx(0, abs=0.3)
    assert float(noise.std() * 255) == pytest.approx(40, rel=0.01)
    assert float((clean + noise).min()) < 0


def test_gaussian_noise_is_the_draw_that_training_was_recorded_with():
    clean = picture(3, 31, 17)
    old = degradations.add_gaussian_noise(clean, 25, seeded(4))
    assert torch.equal(old, clean + torch.randn(clean.shape, generator=seeded(4)) * (25 / 255))
    assert torch.equal(degradations.gaussian(clean, seeded(4), sigma=25.0), old)


def test_camera_noise_has_a_variance_that_is_linear_in_the_signal():
    levels = torch.tensor([0.0, 0.1, 0.3, 0.6, 1.0])
    clean = levels[:, None].expand(5, 200_000)[None].contiguous()
    noisy = degradations.poisson_gaussian(clean, seeded(), photons=80.0, sigma=5.0, linear=False)
    expected = levels / 80 + (5 / 255) ** 2
    assert noisy.mean(-1)[0].tolist() == pytest.approx(levels.tolist(), abs=2e-3)
    assert noisy.var(-1)[0].tolist() == pytest.approx(expected.tolist(), rel=0.02)


def test_camera_noise_on_light_follows_the_same_law_after_decoding():
    clean = torch.full((1, 400, 400), 0.5)
    noisy = degradations.poisson_gaussian(clean, seeded(), photons=200.0, sigma=2.0)
    light = to_light(torch.tensor(0.5))
    assert float(to_light(noisy).var()) == pytest.approx(float(light / 200 + (2 / 255) ** 2), rel=0.02)


def test_light_and_values_are_inverses_also_outside_of_the_range():
    values = torch.linspace(-0.5, 1.5, 201, dtype=torch.float64)
    torch.testing.assert_close(to_values(to_light(values)), values, atol=1e-7, rtol=0)
    assert float(to_light(torch.tensor(0.5))) == pytest.approx(0.21404, abs=1e-5)


def test_jpeg_is_the_round_trip_that_training_was_recorded_with():
    image = picture(3, 24, 40)
    for subsample in (True, False):
        old = degradations.compress_jpeg(image, 30, subsample=subsample)
        assert torch.equal(degradations.jpeg(image, seeded(), quality=30, subsample=subsample), old)


def test_eight_bits_are_what_a_file_keeps():
    image = 1.4 * picture(3, 20, 20) - 0.2
    assert torch.equal(degradations.quantisation(image, seeded()), degradations.quantise(image))
    assert len(degradations.quantisation(image, seeded(), bits=3).unique()) == 8


KERNELS = {
    "gaussian": gaussian_kernel(2.5, 2.5, 0),
    "thin": gaussian_kernel(0, 0, 0),
    "anisotropic": gaussian_kernel(5, 1, 30),
    "disc": disc_kernel(3.3),
    "point": disc_kernel(0),
    "motion": motion_kernel(25, 0.7, seeded()),
    "straight": motion_kernel(25, 0, seeded()),
    "still": motion_kernel(0, 0.5, seeded()),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_sum_to_one_and_are_centred(name):
    kernel = KERNELS[name]
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-5) and float(kernel.min()) >= 0
    for axis, side in enumerate(kernel.shape):
        middle = torch.arange(side) - side // 2
        assert float((kernel.sum(1 - axis) * middle).sum()) == pytest.approx(0, abs=1e-3)


def test_a_gaussian_kernel_has_the_covariance_it_says():
    kernel = gaussian_kernel(5, 2, 30)
    line = torch.arange(len(kernel)) - len(kernel) // 2
    xx, yy = (float((kernel.sum(axis) * line**2).sum()) for axis in (0, 1))
    xy = float((kernel * line[:, None] * line[None]).sum())
    assert (xx, yy) == pytest.approx((25 * 0.75 + 4 * 0.25, 25 * 0.25 + 4 * 0.75), rel=0.01)
    # Rows count downwards: a kernel that rises to the right has a negative product.
    assert xy == pytest.approx(-(25 - 4) * math.sin(math.radians(60)) / 2, rel=0.01)


def test_a_straight_path_is_as_long_as_it_says():
    kernel = motion_kernel(30, 0, seeded(2))
    rows, columns = (kernel > 0).nonzero().T
    extent = math.hypot(float(rows.max() - rows.min()), float(columns.max() - columns.min()))
    assert extent == pytest.approx(30, abs=3)


@pytest.mark.parametrize("name", ["gaussian_blur", "anisotropic_blur", "motion_blur", "defocus_blur"])
def test_blur_keeps_constants(name):
    for level in (0.0, 0.3, 1.0):
        image = torch.full((3, 20, 31), level)
        torch.testing.assert_close(FUNCTIONS[name](image, seeded()), image, atol=1e-5, rtol=0)


def test_symmetric_blur_keeps_the_mean():
    image = picture(3, 25, 18)
    for degraded in (
        degradations.gaussian_blur(image, seeded(), std=6.0),
        degradations.defocus_blur(image, seeded(), radius=9.0, linear=False),
    ):
        torch.testing.assert_close(degraded.mean((1, 2)), image.mean((1, 2)), atol=1e-6, rtol=0)


def test_blur_in_light_keeps_the_mean_of_light_and_lets_highlights_grow():
    image = torch.zeros(1, 41, 41)
    image[0, 20, 20] = 1
    linear = degradations.defocus_blur(image, seeded(), radius=3.0)
    assert float(to_light(linear).sum()) == pytest.approx(1, abs=1e-3)
    assert float(linear.max()) > float(degradations.defocus_blur(image, seeded(), linear=False).max())


def test_blur_is_the_convolution():
    image, kernel = picture(1, 9, 11).double(), motion_kernel(5, 0.8, seeded()).double()
    reach = len(kernel) // 2
    padded = np.pad(image[0].numpy(), reach, mode="symmetric")
    direct = np.zeros((9, 11))
    for (row, column), weight in np.ndenumerate(kernel.numpy()):
        top, left = 2 * reach - row, 2 * reach - column
        direct += weight * padded[top : top + 9, left : left + 11]
    np.testing.assert_allclose(convolve(image, kernel)[0].numpy(), direct, atol=1e-12)


def test_haze_is_koschmieders_law_with_the_depth_that_is_given():
    clean, depth = picture(2, 3, 8, 9), picture(8, 9, seed=1)
    through = torch.exp(-2 * depth)
    expected = clean * through + 0.9 * (1 - through)
    torch.testing.assert_close(
        degradations.haze(clean, seeded(), beta=2.0, airlight=0.9, depth=depth), expected
    )
    each = torch.stack([depth, depth / 2])[:, None]
    hazy = degradations.haze(clean, seeded(), beta=2.0, airlight=0.9, depth=each)
    torch.testing.assert_close(hazy[0], expected[0])
    assert float((hazy[1] - clean[1]).abs().mean()) < float((expected[1] - clean[1]).abs().mean())


def test_a_depth_that_is_made_up_grows_towards_the_horizon():
    fields = torch.stack([degradations.depth_field(torch.zeros(3, 90, 120), seeded(i)) for i in range(20)])
    assert float(fields.min()) >= 0 and float(fields.max()) <= 1
    rows = fields.mean((0, 2))
    assert float(rows[:9].mean()) > float(rows[30:39].mean()) > float(rows[-9:].mean())


@pytest.mark.parametrize(("name", "brightness"), [("rain", 0.85), ("snow", 0.96)])
def test_rain_and_snow_only_move_values_towards_their_own(name, brightness):
    clean = picture(3, 200, 200)
    degraded = FUNCTIONS[name](clean, seeded())
    low, high = clean.clamp(max=brightness), clean.clamp(min=brightness)
    assert bool(((degraded >= low - 1e-5) & (degraded <= high + 1e-5)).all())
    # Streaks and flakes are gray: all three colours move by the same share.
    share = (degraded - clean) / (brightness - clean)
    settled = (brightness - clean).abs().amin(0) > 0.05
    torch.testing.assert_close(share[0][settled], share[2][settled], atol=1e-4, rtol=0)


def test_rain_and_snow_cover_a_large_image_as_densely_as_a_small_one():
    for name in ("rain", "snow"):
        covers = []
        for side, count in ((60, 40), (480, 1)):
            black = torch.zeros(count, 1, side, side)
            covers.append(float(FUNCTIONS[name](black, seeded(), mist=0.0).mean()))
        assert covers[0] == pytest.approx(covers[1], rel=0.15), name


def test_streaks_fall_the_way_they_slant():
    black = torch.zeros(1, 200, 200)
    for slant in (-30.0, 30.0):
        rainy = degradations.rain(black, seeded(), slant=slant, mist=0.0)[0]
        down, right = torch.gradient(rainy)
        # The structure tensor's off-diagonal: a streak that falls to the left rises to the right.
        assert float((down * right).mean()) * slant > 0


def test_nothing_falls_when_there_is_nothing_to_fall():
    clean = picture(3, 50, 50)
    for degraded in (
        degradations.rain(clean, seeded(), streaks=0.0, mist=0.0),
        degradations.snow(clean, seeded(), flakes=0.0, mist=0.0),
        degradations.raindrops(clean, seeded(), drops=0.0),
    ):
        torch.testing.assert_close(degraded, clean, atol=1e-6, rtol=0)


def test_a_drop_shows_the_scene_upside_down():
    clean = torch.zeros(1, 120, 120)
    clean[:, :60] = 1
    for seed in range(60):
        degraded = degradations.raindrops(clean, seeded(seed), drops=60.0, size=12.0)
        changed = (degraded - clean).abs()[0] > 0.5
        if int(changed.sum()) > 60:
            # Bright sky appears in the lower half, dark ground in the upper one.
            assert float(degraded[0, 60:][changed[60:]].mean() if changed[60:].any() else 1) > 0.5
            assert float(degraded[0, :60][changed[:60]].mean() if changed[:60].any() else 0) < 0.5
            return
    pytest.fail("no drop lay across the horizon")


def test_low_light_is_monotone_and_keeps_black():
    ramp = torch.linspace(0, 1, 256)[None, None]
    dark = degradations.low_light(ramp, seeded(), gamma=2.0, gain=0.5, photons=1e9, sigma=0.0)[0, 0]
    torch.testing.assert_close(dark, 0.5 * ramp[0, 0] ** 2, atol=2e-4, rtol=0)
    assert bool((dark.diff() > -1e-4).all()) and float(dark[0]) == 0


def test_low_light_with_fewer_photons_is_noisier():
    flat = torch.full((3, 100, 100), 0.6)
    noise = [
        float(degradations.low_light(flat, seeded(), photons=count).std()) for count in (4000.0, 400.0, 40.0)
    ]
    assert noise[0] < noise[1] < noise[2]


@pytest.mark.parametrize("method", ["bicubic", "bilinear", "area", "nearest"])
def test_downscaling_gives_fewer_pixels_of_the_same_image(method):
    ramp = torch.linspace(0, 1, 60).expand(3, 40, 60)
    small = degradations.downscale(ramp, seeded(), factor=4.0, method=method)
    assert small.shape == (3, 10, 15)
    middle = (torch.arange(15) * 4 + 1.5) / 59
    torch.testing.assert_close(small[0, 5, 2:-2], middle[2:-2], atol=0.02, rtol=0)
    kept = degradations.downscale(ramp, seeded(), factor=2.5, method=method, keep_size=True)
    assert kept.shape == ramp.shape


def test_downscaling_averages_what_would_alias():
    stripes = (torch.arange(64) % 2).float().expand(3, 64, 64)
    for method in ("bicubic", "bilinear", "area"):
        small = degradations.downscale(stripes, seeded(), factor=4.0, method=method)
        torch.testing.assert_close(small[:, 2:-2, 2:-2], torch.full((3, 12, 12), 0.5), atol=0.03, rtol=0)
    assert float(degradations.downscale(stripes, seeded(), factor=4.0, method="nearest").std()) == 0


def test_unknown_names_are_no_attributes():
    assert "rain" in dir(degradations) and set(degradations.__all__) == set(degradations._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'sleet'"):
        _ = degradations.sleet


def test_specs_and_catalogue_bring_neither_torch_nor_numpy():
    heavy = {"torch", "numpy", "PIL"}
    assert not imported_by("import restorekit.degradations.spec").intersection(heavy)


@pytest.mark.parametrize("words", [["degrade", "--list"], ["degrade", "--list", "--json"]])
def test_listing_degradations_brings_neither_torch_nor_numpy(words):
    script = f"import sys; sys.argv = ['restorekit', *{words!r}]\nfrom restorekit.cli import main\n"
    script += "try: main()\nexcept SystemExit as end: assert not end.code\n"
    script += "print()"
    assert not imported_by(script).intersection({"torch", "numpy", "PIL"})
