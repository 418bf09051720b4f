import sys

import numpy as np
import pytest
import torch
from PIL import Image
from training_cases import (
    FIXTURES,
    batch,
    pairs_of,
    photograph,
    source_of,
    spec_for,
    write_pairs,
    write_photographs,
)

from restorekit.config import check
from restorekit.degradations import add_gaussian_noise, compress_jpeg, quantise
from restorekit.errors import ConfigError, ImageError, TrainingError
from restorekit.training.data import Batches, load_source
from restorekit.training.photographs import Photographs
from restorekit.training.prefetch import ahead
from restorekit.training.processes import Processes, processes
from restorekit.training.spec import AugmentSpec, DataSpec, DenoiseSpec, StageSpec, TrainSpec

folder, pairs, cache_folder = FIXTURES


def test_held_out_photographs_are_never_trained_on(folder):
    source = source_of(folder, hold_out=2)
    trained, held_out = ({one.name for one in some} for some in (source.trained, source.held_out))
    assert not trained & held_out and len(trained) == len(held_out) == 2


def test_damaged_files_are_named_and_left_out(tmp_path):
    write_photographs(tmp_path)
    (tmp_path / "broken.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:2000])
    source = source_of(tmp_path)
    assert [skipped.path.name for skipped in source.skipped] == ["broken.png", "cut.png"]
    assert all(skipped.reason for skipped in source.skipped)
    assert len(source.trained) == 3


def test_folder_without_enough_photographs_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="holds 0 readable images"):
        source_of(tmp_path)
    with pytest.raises(TrainingError, match=r"data\.folder: .*nowhere is no folder"):
        source_of(tmp_path / "nowhere")


def test_photographs_are_decoded_once(folder, cache_folder):
    first = source_of(folder, scales=(1.0, 0.5))
    files = {path: path.stat().st_mtime_ns for path in cache_folder.iterdir()}
    assert len(files) == 2 * 4
    second = source_of(folder, scales=(1.0, 0.5))
    assert files == {path: path.stat().st_mtime_ns for path in cache_folder.iterdir()}
    assert torch.equal(batch(first)[1], batch(second)[1])


def test_changed_photograph_is_decoded_again(tmp_path):
    write_photographs(tmp_path)
    before = source_of(tmp_path)
    for path in tmp_path.glob("*.png"):
        photograph(99).save(path)
    after = source_of(tmp_path)
    assert before.sha256 != after.sha256
    assert not torch.equal(batch(before)[1], batch(after)[1])


def test_cache_that_was_deleted_in_the_middle_of_a_run_is_made_again(folder, cache_folder):
    source = source_of(folder)
    expected = batch(source_of(folder), step=3)[1]
    for path in cache_folder.iterdir():
        path.unlink()
    assert torch.equal(batch(source, step=3)[1], expected)


def test_photograph_that_vanishes_in_the_middle_of_a_run_is_skipped(tmp_path, cache_folder):
    write_photographs(tmp_path)
    source = source_of(tmp_path)
    for path in cache_folder.iterdir():
        path.unlink()
    gone = source.trained[0]
    gone.path.unlink()
    assert all(batch(source, count=8, step=step)[1].shape == (8, 3, 24, 24) for step in range(4))
    for path in cache_folder.iterdir():
        path.unlink()
    for one in source.trained[1:]:
        one.path.write_text("rubbish")
    fresh = Photographs(
        source._decoded.__class__(), list(source.trained) + list(source.held_out), [], source_spec(tmp_path)
    )
    with pytest.raises(TrainingError, match="no photograph can be read any more"):
        batch(fresh)


def source_spec(folder):
    return DataSpec(folder=str(folder), hold_out=1)


def test_cache_folder_that_cannot_be_written_leaves_photographs_in_memory(folder, tmp_path):
    (tmp_path / "file").write_text("")
    source = source_of(folder, cache=str(tmp_path / "file"))
    assert torch.equal(batch(source)[1], batch(source_of(folder))[1])


def test_batches_are_a_function_of_seed_and_step(folder):
    source = source_of(folder)
    for one, other in zip(*(batch(source, step=5, degradation=DenoiseSpec()) for _ in range(2)), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(batch(source, step=5)[1], batch(source, step=6)[1])
    assert not torch.equal(batch(source, step=5)[1], batch(source, step=5, seed=1)[1])


def test_batches_of_a_clean_folder_stay_what_they_were(folder):
    """The draws of the first version, written out: the bundled denoiser can be trained again."""
    source = source_of(folder, scales=(1.0, 0.5))
    images = {one.name: Image.open(one.path) for one in source.trained}
    random = np.random.default_rng((7, 11))
    noise = torch.Generator().manual_seed(int(random.integers(2**62)))
    clean = []
    for _ in range(3):
        scale = (1.0, 0.5)[random.integers(2)]
        pool = [
            image.resize((round(192 * scale), round(160 * scale)), Image.Resampling.LANCZOS)
            if scale < 1
            else image
            for image in images.values()
        ]
        pixels = np.array(pool[random.integers(len(pool))])
        top, left = (random.integers(length - 24 + 1) for length in pixels.shape[:2])
        cut = np.rot90(pixels[top : top + 24, left : left + 24], int(random.integers(4)))
        cut = cut[:, ::-1] if random.integers(2) else cut
        clean.append(torch.from_numpy(cut.copy()).permute(2, 0, 1).float() / 255)
    degraded = []
    spec = DenoiseSpec(clean=0.3, jpeg=0.3, eight_bit=0.5)
    for image in clean:
        draw = random.random()
        if draw < 0.3:
            degraded.append(image)
        elif draw < 0.6:
            noisy = add_gaussian_noise(image, random.uniform(0, 15), noise)
            quality = int(random.integers(40, 96))
            degraded.append(compress_jpeg(noisy, quality, subsample=bool(random.integers(2))))
        else:
            noisy = add_gaussian_noise(image, random.uniform(0, 55), noise)
            degraded.append(quantise(noisy) if random.random() < 0.5 else noisy)
    found = batch(source, step=11, seed=7, degradation=spec)
    assert torch.equal(found[1], torch.stack(clean)) and torch.equal(found[0], torch.stack(degraded))


def test_patches_larger_than_every_photograph_are_refused(folder, pairs):
    with pytest.raises(TrainingError, match="no photograph is at least 500 pixels"):
        batch(source_of(folder), patch=500)
    with pytest.raises(TrainingError, match="no pair is at least 500 pixels"):
        batch(pairs_of(pairs), patch=500)


def test_patches_of_a_later_stage_are_looked_at_before_the_first_begins(folder):
    stages = (StageSpec(steps=9, patch=16, batch=1), StageSpec(steps=9, patch=500, batch=1))
    with pytest.raises(TrainingError, match="at least 500 pixels"):
        Batches(source_of(folder), None).check(stages)


def test_batch_that_processes_cannot_share_is_refused_at_the_start():
    three = Processes(torch.device("cpu"))
    three.count = 3
    with pytest.raises(TrainingError, match=r"stages\[0\]: a batch of 2 cannot be shared by 3 processes"):
        three.check(spec_for("x"))
    three.count = 2
    three.check(spec_for("x"))


def test_several_processes_without_accelerate_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(TrainingError, match="2 processes were started, and accelerate is not installed"):
        processes(torch.device("cpu"))


def test_shares_of_the_degradation_are_kept(folder):
    source = source_of(folder)
    for spec, unchanged in ((DenoiseSpec(clean=1, jpeg=0), True), (DenoiseSpec(clean=0, jpeg=1), False)):
        degraded, clean = batch(source, patch=32, degradation=spec)
        assert torch.equal(degraded, clean) is unchanged


def test_augmentation_can_be_switched_off_without_moving_the_windows(folder):
    source = source_of(folder)
    plain = batch(source, count=8, augment=AugmentSpec(rotate=False, flip=False))[1]
    turned = batch(source, count=8)[1]
    assert not torch.equal(plain, turned)
    torch.testing.assert_close(plain.sum((2, 3)), turned.sum((2, 3)))


def test_mixup_blends_degraded_and_clean_alike(pairs):
    source = pairs_of(pairs)
    (degraded, clean), (mixed, mixed_clean) = (
        batch(source, augment=AugmentSpec(mixup=share)) for share in (0, 1)
    )
    assert not torch.equal(clean, mixed_clean)
    # The degraded half is the clean one at half the level, rounded down; so it stays when both are blended.
    for dark, bright in ((degraded, clean), (mixed, mixed_clean)):
        torch.testing.assert_close(dark, bright / 2, rtol=0, atol=0.51 / 255)


def test_both_of_a_pair_are_cut_and_turned_alike(pairs):
    degraded, clean = batch(pairs_of(pairs), count=16)
    torch.testing.assert_close(degraded, clean / 2, rtol=0, atol=0.51 / 255)
    assert float(clean.std()) > 0.05


def test_pairs_in_two_folders_that_are_named(pairs):
    named = {"degraded": str(pairs / "input"), "clean": str(pairs / "target")}
    one, other = pairs_of(str(pairs)), pairs_of([named])
    assert torch.equal(batch(one)[0], batch(other)[0])


def test_pair_of_different_sizes_and_file_without_partner_are_named_and_left_out(tmp_path):
    write_pairs(tmp_path / "pairs", 5)
    photograph(1, width=100).save(tmp_path / "pairs" / "input" / "1.png")
    (tmp_path / "pairs" / "input" / "2.png").unlink()
    (tmp_path / "pairs" / "target" / "3.png").write_text("no image")
    source = pairs_of(str(tmp_path / "pairs"))
    reasons = {skipped.path.name: skipped.reason for skipped in source.skipped}
    assert reasons["1.png"] == "1.png is 100x160 and 1.png 192x160"
    assert reasons["2.png"] == "its partner is missing"
    assert "3.png" in reasons and len(source.trained) + len(source.held_out) == 2


def test_folder_of_pairs_without_two_folders_is_refused(tmp_path):
    with pytest.raises(ImageError, match="no two folders of a layout"):
        pairs_of(str(tmp_path))
    photograph(0).save(tmp_path / "clean.png")
    with pytest.raises(TrainingError, match="no two folders such as input and target"):
        pairs_of(str(tmp_path))


def test_pairs_of_a_network_that_enlarges(tmp_path):
    write_pairs(tmp_path / "pairs", scale=2)
    source = pairs_of(str(tmp_path / "pairs"), scale=2)
    degraded, clean = batch(source, patch=20, scale=2)
    assert degraded.shape[-1] == 20 and clean.shape[-1] == 40
    small = torch.nn.functional.avg_pool2d(clean, 2)
    torch.testing.assert_close(degraded, small / 2, rtol=0, atol=2 / 255)
    assert not pairs_of(str(tmp_path / "pairs"), scale=2).skipped


def test_clean_patches_are_reduced_for_a_network_that_enlarges(folder):
    source = load_source(DataSpec(folder=str(folder), hold_out=1), 2)
    degraded, clean = batch(source, patch=20, scale=2, degradation=DenoiseSpec(clean=1))
    assert degraded.shape[-1] == 20 and clean.shape[-1] == 40
    # Bicubic is sharper than the mean of four pixels, and close to it on smooth images.
    assert float((torch.nn.functional.avg_pool2d(clean, 2) - degraded).abs().mean()) < 0.02


def test_gray_networks_are_given_luma(folder):
    colour, gray = (batch(source_of(folder), channels=channels)[1] for channels in (3, 1))
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    torch.testing.assert_close(gray, (colour * weights).sum(1, keepdim=True))
    noisy = batch(source_of(folder), channels=1, degradation=DenoiseSpec(clean=0, jpeg=1))[0]
    assert noisy.shape[1] == 1


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "needs either folder or pairs"),
        ({"folder": "a", "pairs": "b"}, "needs either folder or pairs"),
        ({"pairs": "b", "scales": [0.5]}, "cannot be reduced"),
        ({"folder": "a", "hold_uot": 1}, "unknown key 'hold_uot'"),
    ],
)
def test_data_that_makes_no_sense_is_refused(facts, message):
    with pytest.raises(ConfigError, match=message):
        check(DataSpec, facts, "test")


def test_several_folders_are_one_source(folder, tmp_path):
    photograph(50).save(tmp_path / "0.png")
    both = load_source(DataSpec(folder=(str(folder), str(tmp_path)), hold_out=1))
    assert len({one.name for one in (*both.trained, *both.held_out)}) == 5


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_made_ahead_come_in_order(workers):
    assert list(ahead(lambda step: step * step, 2, 9, workers)) == [step * step for step in range(2, 9)]


def test_error_in_a_batch_made_ahead_reaches_the_run():
    def make(step):
        if step == 2:
            raise TrainingError("no photograph")
        return step

    batches = ahead(make, 0, 5, 1)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(TrainingError, match="no photograph"):
        next(batches)


def test_noise_has_the_level_it_says_and_is_not_clipped():
    clean = torch.full((3, 200, 200), 0.02)
    noisy = add_gaussian_noise(clean, 25, torch.Generator().manual_seed(0))
    assert float((noisy - clean).std() * 255) == pytest.approx(25, rel=0.01)
    assert float(noisy.min()) < 0


def test_eight_bit_rounding_is_what_a_file_keeps():
    levels = quantise(torch.tensor([-0.2, 0.4999 / 255, 0.501 / 255, 1.3])) * 255
    assert levels.tolist() == pytest.approx([0, 0, 1, 255])


def test_jpeg_loses_more_at_lower_quality():
    image = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    errors = [float((compress_jpeg(image, quality) - image).square().mean()) for quality in (20, 60, 95)]
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize(
    "recipe",
    [
        "gaussian",
        {"name": "gaussian", "sigma": [10, 50]},
        {"one_of": ["clean", {"name": "rain"}]},
        {"chain": [{"name": "gaussian_blur", "std": [1, 2]}, {"name": "downscale", "factor": 2}, "jpeg"]},
    ],
)
def test_clean_patches_are_degraded_by_a_recipe(folder, recipe):
    document = {"backbone": "nafnet", "data": {"folder": str(folder)}, "degradation": recipe}
    spec = check(TrainSpec, {**document, "stages": [{"steps": 1, "patch": 24, "batch": 3}]}, "test")
    one, other = (batch(source_of(folder), degradation=spec.noise) for _ in range(2))
    assert one[0].shape == one[1].shape == (3, 3, 24, 24)
    assert torch.equal(one[0], other[0]) and not torch.equal(one[0], one[1])
    assert check(TrainSpec, spec.model_dump(mode="json", exclude_defaults=True), "again") == spec


@pytest.mark.parametrize(
    ("degradation", "where"),
    [
        ({"name": "gausian"}, "degradation.name"),
        ({"name": "gaussian", "sigma": -4}, "degradation.sigma"),
        ({"chain": ["jpeg", {"name": "rain", "slope": 3}]}, r"degradation\.chain\[1\]\.slope"),
        ({"sgma": [0, 5]}, "degradation: unknown key 'sgma'"),
    ],
)
def test_mistakes_in_a_degradation_have_their_place(folder, degradation, where):
    document = {"backbone": "nafnet", "data": {"folder": str(folder)}, "degradation": degradation}
    with pytest.raises(ConfigError, match=where):
        check(TrainSpec, {**document, "stages": [{"steps": 1, "patch": 24, "batch": 3}]}, "test")


def test_damaged_file_in_the_cache_is_decoded_again(folder, cache_folder):
    expected = batch(source_of(folder))[1]
    for path, content in zip(sorted(cache_folder.iterdir()), (b"", b"rubbish", b"\x93NUMPY"), strict=False):
        path.write_bytes(content)
    whole = sorted(cache_folder.iterdir())[3]
    whole.write_bytes(whole.read_bytes()[:5000])
    assert torch.equal(batch(source_of(folder))[1], expected)


def test_gray_patches_have_the_same_noise_in_every_colour(folder):
    noise = DenoiseSpec(sigma=(20, 20), clean=0, jpeg=0.2)
    degraded, clean = batch(source_of(folder), count=40, degradation=noise, augment=AugmentSpec(gray=0.5))
    gray = [bool((patch == patch[:1]).all()) for patch in clean]
    assert 10 < sum(gray) < 30
    assert [bool((patch - patch[:1]).abs().max() < 0.02) for patch in degraded] == gray
    assert all((one - other).std() > 0.01 for one, other in zip(degraded, clean, strict=True))


def test_levels_take_contrast_from_both_of_a_pair_alike_before_anything_is_degraded(folder, pairs):
    for source in (source_of(folder), pairs_of(pairs)):
        plain = batch(source, count=8)
        flat = batch(source, count=8, augment=AugmentSpec(levels=0.2))
        drawn = set()
        for before, after in zip(torch.stack(plain, 1), torch.stack(flat, 1), strict=True):
            contrast = float((after[1].amax() - after[1].amin()) / (before[1].amax() - before[1].amin()))
            black = float(after[1].amin() - contrast * before[1].amin())
            assert 0.6 <= contrast < 1 and 0 <= black <= 0.2
            torch.testing.assert_close(after, black + contrast * before, atol=1e-5, rtol=0)
            drawn.add(round(contrast, 4))
        assert len(drawn) == 8
    noise = DenoiseSpec(sigma=(20, 20), clean=0, jpeg=0)
    noisy, clean = batch(source_of(folder), degradation=noise, augment=AugmentSpec(levels=0.2))
    assert float((noisy - clean).std() * 255) == pytest.approx(20, rel=0.05)


def test_gray_patches_change_no_other_draw(folder):
    noise = DenoiseSpec(sigma=(20, 20), clean=0, jpeg=0)
    plain, mixed = (
        batch(source_of(folder), count=8, degradation=noise, augment=AugmentSpec(gray=share))[1]
        for share in (0, 0.5)
    )
    kept = [bool((patch != patch[:1]).any()) for patch in mixed]
    assert any(kept) and torch.equal(plain[kept], mixed[kept])
