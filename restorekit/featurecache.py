"""Features of priors that were computed before: in memory, and in files that survive the process.

Only what repeats is worth keeping: images of an evaluation, validation patches, fixed pairs. Patches that
are degraded or cut anew in every step never come back; and features of a mirrored image are not mirrored
features. A key is made of the image's values and of the prior's fingerprint and library, so that nothing has
to be cleared when either changes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from restorekit.contracts import Prior, PriorFeatures
from restorekit.errors import ConfigError
from restorekit.files import ensure_writable, replacing


class CachedPrior(Prior):
    """A prior that computes the features of an image once.

    It stands wherever the prior does. An image that asks for gradients is computed anew. Features are given
    back on the image's device, in float32.

    Args:
        prior: with a fingerprint.
        folder: where files are kept, one for each image, in a folder for each prior; None for memory alone.
        in_memory: how many images are kept in memory, those used last.
        half: keep files in float16, half as large: features change by up to 1 in 2048.
        dense: keep dense features too; without them the prior says global ones alone, a few kilobytes.

    Attributes:
        computed: how many images the prior itself was asked about.

    Raises:
        ConfigError: the prior has no fingerprint.
        OutputError: the folder cannot be written to.
    """

    def __init__(
        self,
        prior: Prior,
        folder: Path | None = None,
        *,
        in_memory: int = 64,
        half: bool = False,
        dense: bool = True,
    ) -> None:
        super().__init__()
        if not prior.fingerprint:
            raise ConfigError(
                "prior",
                f"{type(prior).__name__} does not say what its features depend on, so that none can be kept",
                "give its class the property fingerprint",
            )
        self.prior = prior
        self.features, self.library = prior.features, prior.library
        self.in_memory, self._half, self.dense = in_memory, half, dense
        self.computed = 0
        self._recent: OrderedDict[str, PriorFeatures] = OrderedDict()
        marks = (prior.fingerprint, prior.library, "dense" if dense else "", "half" if half else "")
        name = hashlib.blake2b("/".join(marks).encode(), digest_size=16).hexdigest()
        self.folder = folder / name if folder is not None else None
        if self.folder is not None:
            ensure_writable(self.folder)

    @property
    def fingerprint(self) -> str:
        """That of the prior."""
        return self.prior.fingerprint

    def forward(self, image: Tensor) -> PriorFeatures:
        """(B, C, H, W) in [0, 1] -> features, each image's computed once.

        Raises:
            ContractError: they are not finite; such ones are not kept.
        """
        if image.requires_grad and torch.is_grad_enabled():
            self.computed += len(image)
            return self._trimmed(self.prior(image))
        keys = [_key(one) for one in image]
        # Only for this call: a batch may be larger than what stays in memory.
        found = {key: features for key in keys if (features := self._find(key)) is not None}
        missing = [place for place, key in enumerate(keys) if key not in found]
        if missing:
            self.computed += len(missing)
            fresh = self._trimmed(self.prior(image[missing])).checked(self.prior)
            for index, place in enumerate(missing):
                found[keys[place]] = self._keep(keys[place], _item(fresh, index))
        each = [found[key] for key in keys]
        for key in keys:
            self._recent[key] = found[key]
            self._recent.move_to_end(key)
        while len(self._recent) > self.in_memory:
            self._recent.popitem(last=False)
        glob = torch.cat([one.glob for one in each]).to(image.device)
        maps = [one.dense for one in each if one.dense is not None]
        dense = torch.cat(maps).to(image.device) if maps else None
        return PriorFeatures(glob, dense, each[0].stride)

    def _find(self, key: str) -> PriorFeatures | None:
        if key in self._recent:
            return self._recent[key]
        if self.folder is None:
            return None
        path = self._path(key)
        try:
            with safe_open(path, "pt") as file:
                names = set(file.keys())
                glob = file.get_tensor("glob").float()
                dense = file.get_tensor("dense").float() if "dense" in names else None
                stride = int((file.metadata() or {}).get("stride", 0))
        except (FileNotFoundError, SafetensorError, KeyError, ValueError):
            # What is damaged is computed and written again.
            return None
        return PriorFeatures(glob, dense, stride)

    def _keep(self, key: str, features: PriorFeatures) -> PriorFeatures:
        parts = {"glob": features.glob} | ({"dense": features.dense} if features.dense is not None else {})
        if self._half:
            parts = {name: value.half() for name, value in parts.items()}
        if self.folder is not None:
            path = self._path(key)
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as temporary:
                save_file(parts, temporary, {"stride": str(features.stride)})
        # The first time gives what every other time gives.
        dense = parts["dense"].float() if "dense" in parts else None
        return PriorFeatures(parts["glob"].float(), dense, features.stride)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.safetensors"

    def _trimmed(self, features: PriorFeatures) -> PriorFeatures:
        return features if self.dense else PriorFeatures(features.glob)


def _key(image: Tensor) -> str:
    """Return the hash of an image (C, H, W): its values, shape and type."""
    plain = image.detach().cpu().contiguous()
    digest = hashlib.blake2b(f"{plain.dtype} {tuple(plain.shape)}".encode(), digest_size=20)
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _item(features: PriorFeatures, index: int) -> PriorFeatures:
    def one(values: Tensor) -> Tensor:
        return values[index : index + 1].detach().cpu().clone().contiguous()

    dense = None if features.dense is None else one(features.dense)
    return PriorFeatures(one(features.glob), dense, features.stride)
