"""One HTML page with everything in it: figures, and pictures to slide over."""

from __future__ import annotations

import base64
import heapq
import html
import io
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from restorekit.evaluation.protocols import Levels, to_levels
from restorekit.evaluation.run import Outcome

# Longest side of a picture in the page, in pixels; what is larger is reduced.
_SIDE = 1200
# An error of this many 8-bit levels has the brightest colour of the map.
_BRIGHTEST = 32
# From black through red and yellow to white, evenly spaced.
_COLOURS = np.array([[0, 0, 0], [60, 10, 90], [190, 40, 60], [250, 150, 20], [255, 255, 200]], np.float64)


@dataclass(order=True, frozen=True)
class _Card:
    rank: float
    name: str
    markup: str


class Page:
    """Gathers the images of a run with the lowest PSNR.

    Args:
        most: how many to keep.
    """

    def __init__(self, most: int = 24) -> None:
        self.most = most
        self.left_out = 0
        self._cards: list[_Card] = []

    def add(self, outcome: Outcome) -> None:
        """Take an image in, if it is among the worst so far; its pictures are encoded at once."""
        rank = -outcome.figures["psnr"]
        if len(self._cards) == self.most:
            self.left_out += 1
            if rank <= self._cards[0].rank:
                return
            heapq.heappop(self._cards)
        heapq.heappush(self._cards, _Card(rank, outcome.sample.name, _markup(outcome)))

    def render(self, facts: Mapping[str, Any]) -> str:
        """Return the page.

        Args:
            facts: as printed by `restorekit eval --json`.
        """
        parts = resources.files("restorekit.evaluation")
        template = parts.joinpath("page.html").read_text(encoding="utf-8")
        shown = [card.markup for card in sorted(self._cards, reverse=True)]
        replaced = {
            "TITLE": html.escape(_title(facts)),
            "FIGURES": _figures(facts),
            "FACTS": _facts(facts),
            "IMAGES": "\n".join(shown),
            "LEFT_OUT": f"{self.left_out} images with a higher PSNR are not shown." if self.left_out else "",
            "BRIGHTEST": str(_BRIGHTEST),
        }
        for name, text in replaced.items():
            template = template.replace(f"{{{{{name}}}}}", text)
        return template


def error_map(clean: NDArray[np.floating], restored: NDArray[np.floating]) -> Levels:
    """Return the mean absolute error of a pixel's channels as colours (H, W, 3): black is none.

    Args:
        clean: (H, W, C) in [0, 1].
        restored: of the same shape.
    """
    error = np.abs(np.clip(restored, 0, 1) - clean).mean(2) * 255 / _BRIGHTEST
    place = np.clip(error, 0, 1) * (len(_COLOURS) - 1)
    colours = [np.interp(place, np.arange(len(_COLOURS)), _COLOURS[:, channel]) for channel in range(3)]
    levels: Levels = np.stack(colours, axis=-1).astype(np.uint8)
    return levels


def _markup(outcome: Outcome) -> str:
    height, width = outcome.clean.shape[:2]
    pictures = {
        "degraded": to_levels(outcome.degraded),
        "restored": to_levels(outcome.restored),
        "clean": to_levels(outcome.clean),
        "error": error_map(outcome.clean, outcome.restored),
    }
    sources = {name: _data_uri(levels, (width, height)) for name, levels in pictures.items()}
    data = " ".join(f'data-{name}="{uri}"' for name, uri in sources.items())
    figures = ", ".join(
        f"{metric} {_before(outcome, metric)}<b>{value:.4g}</b>" for metric, value in outcome.figures.items()
    )
    return (
        f'<figure class="image" style="--ratio:{width}/{height};--width:{min(width, _SIDE)}px" {data}>'
        f"<figcaption>{html.escape(outcome.sample.name)} <span>{figures}</span></figcaption></figure>"
    )


def _before(outcome: Outcome, metric: str) -> str:
    return f"{outcome.before[metric]:.4g} &rarr; " if metric in outcome.before else ""


def _data_uri(levels: Levels, size: tuple[int, int]) -> str:
    picture = PIL.Image.fromarray(levels.repeat(3, axis=2) if levels.shape[2] == 1 else levels)
    if picture.size != size:
        # A degraded image that was enlarged by the network: its pixels are to be seen.
        picture = picture.resize(size, PIL.Image.Resampling.NEAREST)
    picture.thumbnail((_SIDE, _SIDE), PIL.Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=92, method=2)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _title(facts: Mapping[str, Any]) -> str:
    settings = "".join(f" {name}={value:g}" for name, value in facts["settings"].items())
    return f"{facts['pipeline']}, {facts['protocol']}{settings}"


def _figures(facts: Mapping[str, Any]) -> str:
    metrics = [key for key in facts["per_image"][0] if key in facts and key not in ("image", "seconds")]
    rows = []
    for metric in metrics:
        before, after = facts["degraded"].get(metric), facts[metric]
        cells = (metric, *("-" if value is None else f"{value:.4f}" for value in (before, after)))
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "<tr><th>metric</th><th>degraded</th><th>restored</th></tr>" + "".join(rows)


def _facts(facts: Mapping[str, Any]) -> str:
    hidden = {"per_image", "degraded"} | {key for key in facts["per_image"][0] if key in facts}
    rows = []
    for name, value in facts.items():
        if name not in hidden:
            text = (
                ", ".join(f"{key} {each}" for key, each in value.items())
                if isinstance(value, dict)
                else value
            )
            rows.append(f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(text))}</dd>")
    return "".join(rows)
