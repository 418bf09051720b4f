"""The router by overlap: which degradation's filters does this image lean on?

FAIG attributes what a network does to an image to filters, and calls the overlap of the most important ones
with those of a degradation its score (Xie et al., NeurIPS 2021, section 4.4); 98 and 96 % of noisy and blurry
images were told so there. Neither the clean image nor a second network is at hand here, so this is a variant:
the path leads from the base to the base with all deltas in equal shares, whose output stands in for the clean
image. Meant for diagnosis: it costs as much as ``steps`` steps of training for each image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from restorekit.errors import RestoreKitError
from restorekit_adms.managing import Managed
from restorekit_adms.sharing import check_own, turn

_STEPS, _RATIO, _TEMPERATURE = 8, 0.25, 0.1


def overlap_shares(network: Managed, image: Tensor) -> Tensor:
    """(1, C, H, W) -> (1, K): softmax of the overlaps, nothing for kinds that none is of.

    Raises:
        RestoreKitError: there are filters of combined degradations alone, which no router chooses,
            another network has merged its own into the base, or a gradient is not finite.
    """
    options = dict(network.adapter.router.options or {})
    steps, ratio = options.get("steps", _STEPS), options.get("ratio", _RATIO)
    adapter, mixer, backbone = network.adapter, network.mixer, network.backbone
    routed = [index for index, name in enumerate(adapter.names) if name in adapter.routed]
    if not routed:
        raise RestoreKitError(
            "the router overlap has nothing to choose among: all filters were combined of others",
            "name one by set_adapter, or by router: {name: oracle, label: ...}",
        )
    place = network.adapter.base
    # What inference mode made cannot take part in a gradient; copies can.
    with turn(backbone), torch.inference_mode(False), torch.enable_grad():
        check_own(backbone, network)
        frozen = {name: value.clone() for name, value in mixer.frozen().items()}
        frozen |= {name: value.clone() for name, value in backbone.named_buffers() if value.is_inference()}
        degraded = image.to(place.device, next(backbone.parameters()).dtype).clone()
        equal = torch.zeros(len(adapter.names), device=place.device)
        equal[routed] = 1 / len(routed)
        with torch.no_grad():
            mixture = mixer.mixture(equal)

        def run(share: Tensor) -> Tensor:
            values = torch.split(mixture * share, mixer.sizes)
            output: Tensor = functional_call(
                backbone, mixer.placed(frozen, values), (degraded,), tie_weights=False
            )
            return output

        target = run(torch.ones_like(mixture)).detach()
        total = torch.zeros_like(mixture)
        for step in range(steps):
            share = torch.full_like(mixture, (step + 0.5) / steps).requires_grad_()
            (gradient,) = torch.autograd.grad((run(share) - target).square().sum(), share)
            # The mixture times the gradient of the weights: what each number contributes at this step.
            total += gradient
        if not bool(total.isfinite().all()):
            raise RestoreKitError(
                "the router overlap cannot judge this image: the backbone's gradient is not finite there",
                "name the degradation, by set_adapter or router: {name: oracle, label: ...}",
            )
        important = torch.zeros(len(total), dtype=torch.bool, device=total.device)
        important[total.abs().argsort(descending=True, stable=True)[: max(1, int(len(total) * ratio))]] = True
        members = mixer.members(len(adapter.names))
        overlaps = torch.stack([important[members[index]].float().mean() for index in routed])
    told: Tensor = (overlaps / options.get("temperature", _TEMPERATURE)).softmax(0)
    shares: Tensor = told.new_zeros(1, len(adapter.kinds))
    shares[0, routed] = told
    return shares
