"""PTG-RM as a refiner: of images behind any backbone, or of features inside one that offers them.

Shapes as in the package's docstring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, normalize

from restorekit.contracts import Backbone, Prior, PriorFeatures, Refiner, one_view
from restorekit.errors import ContractError
from restorekit.tiling import Tiler, pad_to_multiple
from restorekit_ptgrm.attention import Attention, ChannelSpatialAttention
from restorekit_ptgrm.ends import FeatureDecoder, FeatureEncoder, ImageDecoder, ImageEncoder
from restorekit_ptgrm.enhancement import Gate, RangeMap, SpatialVaryingEnhancement
from restorekit_ptgrm.guidance import Guide
from restorekit_ptgrm.inside import RefinedBackbone
from restorekit_ptgrm.strips import Strip, Work, exact

Head = Literal["paper", "release"]
Start = Literal["identity", "random"]
Concatenation = Literal["none", "vector", "map"]
Level = Literal["image", "feature"]
Unit = Literal["unit"]

# The published width between the layers that embed the prior, and smaller ones for wider priors; above 1024
# a network of the published width would have a million parameters.
_HIDDEN = (256, 128, 64, 32, 16, 8)
_WIDE_PRIOR, _MOST = 1024, 1_000_000
_BYTES_PER_PIXEL = 128
# Smaller windows would be mostly overlap.
_LEAST_WINDOW = 32


class PTGRM(Refiner):
    """Pre-train-guided refinement module, PTG-RM (Xu et al., CVPR 2024, arXiv 2403.06793).

    Two branches of near and far range are mixed as the prior says (PTG-SVE), channels and pixels are attended
    to as it says (PTG-CSA), and a mask and a residual correct the restored image (eq. 1). The prior is
    brought to unit length. Normalisation and attention take sums over the whole image: never run this on
    tiles, but by ``refine_in_parts``, which gives what ``forward`` gives.

    Args:
        prior_features: F.
        channels: C of the degraded image, 1 or 3; 6 for the two views of dual pixels, of one restored image
            (3): both are compared with it, and their mean is what eq. 1 starts from.
        width: D.
        kernel: side of the kernels that every pixel gets, odd.
        long_blocks: transformer blocks of the long-range branch.
        prior_hidden: between the two layers that embed the prior; 256, 128 for priors wider than 1024, and
            less where the network would have a million parameters otherwise.
        head: ``paper`` has mask and residual; ``release``, the published code, adds a residual to the
            restored image clamped to [0, 1].
        mask_channels: of the mask, 1 or those of the restored image, which is the default.
        gate: what the range map multiplies, the short-range branch (``paper``) or the long-range one.
        start: ``identity`` begins with one mask for all pixels and no residual, for a backbone that is
            trained already; ``random`` leaves the last layer as torch makes it.
        trust: the logit of that mask: 4 is 0.98, next to the identity; 2 is 0.88. Where the sigmoid is as
            flat as at 4, a short training leaves the mask as it is, and the mask is where most of the gain
            comes from. It is not asked where there is no such mask.
        range_map: ``prior``; ``snr``, from how noisy the degraded image is; ``sum``, none (table 3).
        channel_attention: guided by the ``prior``, by ``features`` alone, or ``none``.
        spatial_attention: likewise.
        positions: whether coordinates guide, beside the prior.
        concatenation: instead of all that, or beside it, join the prior to the features: its ``vector``, or
            its dense ``map``, enlarged. It begins with the features as they are, and the prior added by
            weights that are drawn as those of a layer that sees the prior alone.
        dense_features: of the dense map.
        prior_scale: factor on the prior, 1 in the published code; ``unit``, the square root of F, gives its
            values a root mean square of one, whatever F is.
        window: at inference, take sums over windows of this side in pixels, each at its place, and blend
            them; 0 for the whole image. For weights trained on patches, whose sums were those of patches
            (after Chu et al., Improving Image Restoration by Revisiting Global Information Aggregation, ECCV
            2022).
        detach: keep the gradient of the refined image from the backbone.
        level: ``image``, or ``feature`` for the deepest features of a backbone.
        latent_features: how many these are.

    Raises:
        ValueError: the arguments do not describe a network; the message says which.
    """

    size_multiple = 4
    padding = "reflect"
    in_parts = True
    placed = True

    def __init__(
        self,
        prior_features: int = 512,
        channels: int = 3,
        width: int = 16,
        kernel: int = 3,
        long_blocks: int = 4,
        prior_hidden: int | None = None,
        head: Head = "paper",
        mask_channels: int | None = None,
        gate: Gate = "paper",
        start: Start = "identity",
        trust: float = 4.0,
        range_map: RangeMap = "prior",
        channel_attention: Attention = "prior",
        spatial_attention: Attention = "prior",
        positions: bool = True,
        concatenation: Concatenation = "none",
        dense_features: int = 0,
        prior_scale: float | Unit = 1.0,
        window: int = 0,
        detach: bool = False,
        level: Level = "image",
        latent_features: int | None = None,
    ) -> None:
        super().__init__()
        restored = 3 if channels == 6 else channels
        mask_channels = restored if mask_channels is None else mask_channels
        _check_words(
            head=(head, Head),
            gate=(gate, Gate),
            start=(start, Start),
            range_map=(range_map, RangeMap),
            channel_attention=(channel_attention, Attention),
            spatial_attention=(spatial_attention, Attention),
            concatenation=(concatenation, Concatenation),
            level=(level, Level),
        )
        least = {"prior_features": (prior_features, 1), "width": (width, 1), "long_blocks": (long_blocks, 0)}
        least |= {"dense_features": (dense_features, 0)}
        least |= {"prior_hidden": (prior_hidden, 1)} if prior_hidden is not None else {}
        least |= {"latent_features": (latent_features, 1)} if latent_features is not None else {}
        for name, (number, smallest) in least.items():
            _require(number >= smallest, f"{name} is {number}, not at least {smallest}")
        _require(
            isinstance(prior_scale, str) or math.isfinite(prior_scale),
            f"prior_scale is {prior_scale}, not finite",
        )
        _require(math.isfinite(trust), f"trust is {trust}, not finite")
        _require(channels in (1, 3, 6), f"channels is {channels}, not 1, 3 or 6")
        _require(kernel % 2 == 1 and kernel > 0, f"kernel is {kernel}, not odd and positive")
        _require(mask_channels in (1, restored), f"mask_channels is {mask_channels}, not 1 or {restored}")
        _require(
            (concatenation == "map") == (dense_features > 0),
            "concatenation 'map' and dense_features go together",
        )
        _require(
            window == 0 or window >= _LEAST_WINDOW, f"window is {window}, not 0 or at least {_LEAST_WINDOW}"
        )
        _require(level == "image" or window == 0, "window is for images, level is 'feature'")
        _require(level == "image" or head == "paper", "the head 'release' is for images, level is 'feature'")
        _require(
            level == "image" or latent_features is not None,
            "level 'feature' needs latent_features, those that the backbone declares",
        )
        _require(
            level == "image" or range_map != "snr", "the range map 'snr' is for images, level is 'feature'"
        )
        self.prior_features, self.channels, self.dense_features = prior_features, channels, dense_features
        # What the decoder returns, in this order: the mask, if any, and the residual.
        self.parts = [mask_channels * (head == "paper"), restored]
        self.out_channels = None if restored == channels else restored
        self.head, self.level = head, level
        if isinstance(prior_scale, str):
            _check_words(prior_scale=(prior_scale, Unit))
            prior_scale = math.sqrt(prior_features)
        self.prior_scale, self.detach, self.concatenation = prior_scale, detach, concatenation
        self.window = window
        self.inside, self.latent_features = level == "feature", latent_features
        given = {"none": 0, "vector": prior_features, "map": dense_features}[concatenation]
        self.concatenated = _joining(width, given) if given else None

        def core(hidden: int) -> tuple[SpatialVaryingEnhancement, ChannelSpatialAttention]:
            embedded = (prior_features, hidden, 4 * width)
            return (
                SpatialVaryingEnhancement(width, long_blocks, *embedded, range_map, gate, positions),
                ChannelSpatialAttention(
                    width, kernel, *embedded, channel_attention, spatial_attention, positions
                ),
            )

        if latent_features is not None and level == "feature":
            self.encoder: nn.Module = FeatureEncoder(latent_features, width)
            self.decoder: nn.Module = FeatureDecoder(width, 1 + latent_features)
        else:
            self.encoder = ImageEncoder(restored + channels, width)
            self.decoder = ImageDecoder(width, sum(self.parts))
        left = _MOST - _count(self)
        self.enhancement, self.attention = core(prior_hidden or _hidden(prior_features, core, left))
        if start == "identity":
            self._start_as_identity(trust)

    @classmethod
    def fitted(cls, params: Mapping[str, Any], backbone: Backbone | None, prior: Prior) -> dict[str, Any]:
        """Return the arguments for this prior, the channels of the backbone, and its deepest features."""
        known: dict[str, Any] = {"prior_features": prior.features}
        if params.get("concatenation") == "map":
            place = next((tensor.device for tensor in chain(prior.parameters(), prior.buffers())), None)
            dense = prior.guidance(torch.zeros(1, 3, 64, 64, device=place)).dense
            if dense is None:
                raise ContractError(
                    f"concatenation 'map' joins a prior's dense map, and {type(prior).__name__} has none",
                    "name another prior, or write concatenation: vector",
                )
            known["dense_features"] = dense.shape[1]
        if backbone is not None and backbone.channels in (1, 6):
            known["channels"] = backbone.channels
        if backbone is not None and params.get("level") == "feature":
            known["latent_features"] = backbone.latent_features
        return {**known, **params}

    def forward(
        self, degraded: Tensor, restored: Tensor, prior: PriorFeatures, places: Tensor | None = None
    ) -> Tensor:
        """(B, C, H, W) twice and the prior of the degraded one -> (B, C, H, W); any size.

        Of two views the degraded image has six channels, the restored one and the result three. The prior of
        windows is that of their images, in which they lie at ``places``; their sides are multiples of 4, and
        sums are taken over each.

        Raises:
            ContractError: the prior or the images are not those that it was built for.
        """
        work = Work.on(self._anchor.device)
        if self.window and places is None and not self.training:
            return self._in_windows(degraded, restored, prior, work)
        return self._refined(degraded, restored, prior, work, places)

    def refine_in_parts(self, degraded: Tensor, restored: Tensor, prior: PriorFeatures, tile: int) -> Tensor:
        """Return what ``forward`` returns, with about ``tile * tile`` pixels at a time on the device.

        Images and maps lie where ``degraded`` lies. Sums over the image are taken part by part, exactly.
        """
        work = Work(tile * tile * _BYTES_PER_PIXEL)
        with torch.no_grad():
            if self.window:
                return self._in_windows(degraded, restored, prior, work)
            return self._refined(degraded, restored, prior, work)

    def maps(self, degraded: Tensor, restored: Tensor, prior: PriorFeatures) -> dict[str, Tensor]:
        """Return the paper's maps, those that this network has, of the whole image, whatever ``window`` is.

        M (B, 1, h, w), what comes from near; M_c (B, D) and M_s (B, 1, h, w), attention to channels and to
        pixels; I_m (B, C or 1, H, W), what is kept of the restored image; I_r (B, C, H, W), what is added.
        """
        with torch.no_grad():
            degraded, restored, (height, width) = self._padded(degraded, restored)
            work = Work.on(self._anchor.device)
            f, maps = self._latent(degraded, restored, self._guide(prior, None, len(degraded)), work)
            values: Tensor = self.decoder(f, work, lambda values, strip: values)
            values = values[..., :height, :width]
        if self.head == "paper":
            mask, values = torch.split(values, self.parts, 1)
            maps["I_m"] = torch.sigmoid(mask)
        return {**maps, "I_r": values}

    def attach(self, backbone: Backbone, prior: Prior) -> Backbone:
        """Return the backbone with its deepest features refined, guided by the prior.

        Raises:
            ContractError: the level is not ``feature``, or the backbone has other features, or offers none.
        """
        return RefinedBackbone(backbone, self, prior)

    def refine_latent(
        self, latent: Tensor, prior: PriorFeatures, places: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, L, h, w), the prior of the degraded image -> (B, L, h, w), and the maps that were used.

        ``places`` are those of ``forward``.
        """
        latent = latent.detach() if self.detach else latent
        guide, work = self._guide(prior, places, len(latent)), Work.on(self._anchor.device)
        f, maps = self._guided(self.encoder(latent), guide, None, work)
        mask, residual = torch.split(self.decoder(f), [1, latent.shape[1]], 1)
        # One is added, so that a network whose last layer is zero is exactly the identity.
        return torch.addcmul(latent, latent, mask) + residual, {**maps, "m": 1 + mask, "r": residual}

    @property
    def _anchor(self) -> Tensor:
        """A parameter that every kind of this network has."""
        return self.enhancement.short.first.weight

    def _padded(self, degraded: Tensor, restored: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        given = [image.shape[1] for image in (degraded, restored)]
        wanted = [self.channels, self.out_channels or self.channels]
        if degraded[:, :1].shape != restored[:, :1].shape:
            sizes = " and ".join(str(tuple(image.shape)) for image in (degraded, restored))
            raise ContractError(
                f"ptgrm takes a degraded and a restored image of one size, found {sizes}",
                "put it behind a backbone that keeps the size",
            )
        if given != wanted:
            count = self.channels if self.out_channels is None else f"{wanted[0]} and {wanted[1]}"
            raise ContractError(
                f"ptgrm takes two images of {count} channels, found {tuple(degraded.shape)} and "
                f"{tuple(restored.shape)}",
                "set its params.channels",
            )
        height, width = degraded.shape[-2:]
        degraded, restored = (
            pad_to_multiple(image, self.size_multiple, self.padding) for image in (degraded, restored)
        )
        return degraded, restored, (height, width)

    def _refined(
        self,
        degraded: Tensor,
        restored: Tensor,
        prior: PriorFeatures,
        work: Work,
        places: Tensor | None = None,
    ) -> Tensor:
        if self.level == "feature":
            raise ContractError(
                "ptgrm of level 'feature' works inside a backbone, not on its result", "use attach()"
            )
        degraded, restored, (height, width) = self._padded(degraded, restored)
        restored = restored.detach() if self.detach else restored
        f, _ = self._latent(degraded, restored, self._guide(prior, places, len(degraded)), work)
        degraded = one_view(degraded)

        def finish(values: Tensor, strip: Strip) -> Tensor:
            values = values.to(degraded.dtype)
            after = strip.read(restored, 0, values)
            if self.head == "release":
                return after.clamp(0, 1) + values
            mask, residual = torch.split(values, self.parts, 1)
            mask = torch.sigmoid(mask.contiguous(memory_format=torch.channels_last))
            return torch.lerp(strip.read(degraded, 0, values), after, mask) + residual

        refined: Tensor = self.decoder(f, work, finish)
        return refined.to(degraded.device)[..., :height, :width]

    def _in_windows(self, degraded: Tensor, restored: Tensor, prior: PriorFeatures, work: Work) -> Tensor:
        degraded, restored, size = self._padded(degraded, restored)
        height, width = degraded.shape[2:]
        tiler, multiple = Tiler(self.window, self.window // 4, keep=True), self.size_multiple
        windows = iter(tiler.windows(height, width, multiple))

        def act(degraded: Tensor, restored: Tensor) -> Tensor:
            rows, columns = next(windows)
            place = [rows.start / height, columns.start / width, rows.stop / height, columns.stop / width]
            places = torch.tensor([place], device=self._anchor.device)
            return self._refined(degraded, restored, prior, work, places)

        refined = tiler(act, degraded, restored, multiple=multiple, channels=self.parts[1])
        return refined[..., : size[0], : size[1]].to(degraded.dtype)

    def _latent(
        self, degraded: Tensor, restored: Tensor, guide: Guide, work: Work
    ) -> tuple[Tensor, dict[str, Tensor]]:
        f = self.encoder(restored, degraded, work)
        return self._guided(f, guide, one_view(degraded), work)

    def _guided(
        self, f: Tensor, guide: Guide, degraded: Tensor | None, work: Work
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, D, h, w) -> (B, D, h, w), and the maps that it was made with."""
        if self.concatenated is not None:
            parts = [f.shape[1], self.concatenated.in_channels - f.shape[1]]
            of_map, of_prior = torch.split(self.concatenated.weight, parts, 1)
            # Projecting before enlarging gives the same: both are linear, and one acts on pixels alone.
            if guide.dense is None:
                added = conv2d(guide.prior[:, :, None, None], of_prior)
            else:
                added = guide.cut(conv2d(guide.dense, of_prior), *f.shape[2:])
            f = conv2d(f.to(guide.prior), of_map).add(added).to(f.device)
        f, score = self.enhancement(f, guide, degraded, work)
        f, channels, pixels = self.attention(f, guide, work)
        maps = {"M": score, "M_c": channels, "M_s": pixels}
        return f, {name: value for name, value in maps.items() if value is not None}

    def _guide(self, prior: PriorFeatures, places: Tensor | None, images: int) -> Guide:
        """Return the prior at unit length, and its dense map where that is used."""
        weight = self._anchor
        if len(prior.glob) != images:
            raise ContractError(
                f"ptgrm refines {images} images, and the prior describes {len(prior.glob)}",
                "ask the prior of the images that are refined",
            )
        if prior.glob.shape[-1] != self.prior_features:
            raise ContractError(
                f"ptgrm was built for a prior of {self.prior_features} features, this one has "
                f"{prior.glob.shape[-1]}",
                "use the prior that it was trained with",
            )
        guide = normalize(prior.glob.to(weight.device, exact(weight)), dim=1) * self.prior_scale
        if self.concatenation != "map":
            return Guide(guide.to(weight.dtype), None, places)
        found = None if prior.dense is None else prior.dense.shape[1]
        if prior.dense is None or found != self.dense_features:
            raise ContractError(
                f"ptgrm was built for {self.dense_features} dense features, this prior has {found}",
                "use the prior that it was trained with",
            )
        return Guide(guide.to(weight.dtype), prior.dense.to(weight), places)

    def _start_as_identity(self, trust: float) -> None:
        last = self.decoder.last
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        if self.level == "image" and self.head == "paper":
            nn.init.constant_(last.bias[: self.parts[0]], trust)


def _joining(width: int, given: int) -> nn.Conv2d:
    """Return the layer that joins the prior to the features: the identity, and the prior's own layer.

    Drawn as one layer, 1280 values of a prior would make its weights so small that of the features hardly
    anything came through.
    """
    joined = nn.Conv2d(width + given, width, 1, bias=False)
    with torch.no_grad():
        joined.weight[:, :width] = torch.eye(width)[:, :, None, None]
        # torch's own start of a layer with this many inputs.
        nn.init.uniform_(joined.weight[:, width:], -(given**-0.5), given**-0.5)
    return joined


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _hidden(prior_features: int, core: Callable[[int], Sequence[nn.Module]], left: int) -> int:
    """Return the width between the layers that embed a prior, with which so many parameters suffice.

    A network that is larger for other reasons has the published one, behind a wide prior the smallest.
    """
    wide = prior_features > _WIDE_PRIOR
    widths = _HIDDEN[1:] if wide else _HIDDEN
    with torch.device("meta"):
        fits = [width for width in widths if sum(_count(part) for part in core(width)) < left]
    return fits[0] if fits else widths[-1 if wide else 0]


def _check_words(**words: tuple[str, Any]) -> None:
    for name, (word, allowed) in words.items():
        known = get_args(allowed)
        _require(word in known, f"{name} is {word!r}, not one of: {', '.join(known)}")


def _require(kept: bool, broken: str) -> None:
    if not kept:
        raise ValueError(broken)
