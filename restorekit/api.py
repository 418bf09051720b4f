"""The front desk: ``restore()``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restorekit.config import PipelineSpec
from restorekit.errors import ImageError
from restorekit.image import Image
from restorekit.pipeline import Pipeline
from restorekit.result import RestoreResult


def load_pipeline(
    pipeline: str | Path | Mapping[str, Any] | PipelineSpec,
    *,
    device: str = "auto",
    dtype: str = "auto",
    license_policy: str | None = None,
    offline: bool | None = None,
) -> Pipeline:
    """Build a pipeline once, to restore many images with it.

    Args:
        pipeline: name of a preset, path of a YAML file, mapping as in YAML, or spec.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto, fp32, bf16 or fp16.
        license_policy: permissive, noncommercial or any; by default what RESTOREKIT_LICENSE_POLICY says, else
            any. Components and weights that it does not allow are refused before anything is downloaded.
        offline: download no weights; by default what RESTOREKIT_OFFLINE or HF_HUB_OFFLINE says.

    Raises:
        RestoreKitError: the pipeline cannot be found or built.
    """
    spec = pipeline if isinstance(pipeline, PipelineSpec) else PipelineSpec.load(pipeline)
    return Pipeline.build(spec, device, dtype, license_policy=license_policy, offline=offline)


def restore(
    image: Any,
    pipeline: str | Path | Mapping[str, Any] | PipelineSpec | Pipeline = "auto",
    *,
    device: str = "auto",
    dtype: str = "auto",
    tile: int | str = "auto",
    seed: int | None = None,
    return_result: bool = False,
) -> Any:
    """Restore a degraded image and return the same kind of image.

    Args:
        image: path, PIL image, array (H, W), (H, W, 3) or (H, W, 4) of uint8, uint16 or float, tensor (C, H,
            W) or (N, C, H, W), or a list of these. The range follows from the type: 0..255, 0..65535, or 0..1
            for floats, whose values outside 0..1 reach the network as they are. Colours are RGB.
        pipeline: name of a preset, path of a YAML file, mapping, spec, or what ``load_pipeline`` returned
            (whose device and dtype then hold).
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto, fp32, bf16 or fp16; the precision of the networks, not of the result.
        tile: auto, 0 for the whole image, or a side in pixels.
        seed: of torch's generators while networks run; None leaves them alone.
        return_result: return a ``RestoreResult`` (or a list of them) instead of the bare image.

    Returns:
        The same kind as ``image``, same sample type and layout; a PIL image for a path; a list for a list.

    Raises:
        ImageError: the image cannot be read, or holds NaN or infinity.
        RestoreKitError: anything else that can be put right; the message says what and how.
    """
    built = (
        pipeline if isinstance(pipeline, Pipeline) else load_pipeline(pipeline, device=device, dtype=dtype)
    )

    def one(item: Any) -> RestoreResult:
        return built(Image.of(item), tile=tile, seed=seed)

    if isinstance(image, (list, tuple)):
        results = [one(item) for item in image]
        return results if return_result else [result.image.like_source() for result in results]
    if isinstance(image, Tensor) and image.ndim == 4:
        if not len(image):
            raise ImageError("the batch of images is empty", "give at least one image")
        results = [one(item) for item in image]
        return results if return_result else torch.stack([result.image.to_tensor() for result in results])
    result = one(image)
    return result if return_result else result.image.like_source()
