"""The table of one task of a ``RefinedSpec``: what is measured so far, and what it is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from restorekit.experiments.refinedlayout import PROTOCOL, TITLES, WAYS, Layout, Way
from restorekit.experiments.refinedspec import BASE, LONGER
from restorekit.experiments.table import Repeated, compared, read_reports

# By seed and column.
_Reports = Mapping[int, Mapping[str, Mapping[str, Any]]]
# Rows whose compute differs by more are not compared with the backbone trained longer.
_AS_MUCH = 0.1


class RefinedTable:
    """One task's table.

    Args:
        layout: where reports lie.
        task: its name.
    """

    def __init__(self, layout: Layout, task: str) -> None:
        self._layout, self._task = layout, task
        self._columns = tuple(layout.columns(task))
        self._found = {way: self._measured(way) for way in WAYS}
        rows = self._found[""]
        self._sizes = {row: _refiner_size(runs) for row, runs in rows.items() if row in layout.spec.rows}
        self._counted = {row: layout.counted(task, row) for row in layout.spec.rows_of(task)}

    @property
    def markdown(self) -> str:
        """The table, and what it is of."""
        spec = self._layout.spec
        over = {"over alone": TITLES[BASE], **({"over longer": TITLES[LONGER]} if spec.longer else {})}
        return f"{compared([*self._lines()], self._columns, over)}\n\n{self._about()}"

    @property
    def facts(self) -> dict[str, Any]:
        """The same for programs: every report by row, seed and column."""
        return {
            "columns": self._columns,
            "rows": self._found[""],
            "means": self._found["mean"],
            "apart": self._found["apart"],
            "compute": self._counted,
        }

    def _measured(self, way: Way) -> dict[str, _Reports]:
        """Return the reports of every row that is measured in this way."""
        layout = self._layout
        return {row: self._reports(row, way) for row in layout.rows(self._task) if way in layout.ways(row)}

    def _reports(self, row: str, way: Way) -> _Reports:
        """Return the reports that are there, by seed and column."""
        layout = self._layout
        files = {
            seed: {column: layout.report(self._task, row, seed, column, way) for column in self._columns}
            for seed in layout.seeds(row)
        }
        found = {seed: read_reports(columns) for seed, columns in files.items()}
        return {seed: reports for seed, reports in found.items() if reports}

    def _lines(self) -> Iterator[Repeated]:
        layout, found = self._layout, self._found
        rows = found[""]
        base = rows[BASE][layout.spec.seed]
        before = {column: report["degraded"] for column, report in base.items()}
        yield Repeated("degraded", {0: before}, seeded=False)
        for row, runs in rows.items():
            counted = self._counted.get(row)
            yield Repeated(
                layout.title(row),
                runs,
                self._sizes.get(row),
                seeded=row != BASE,
                instead=found["mean"].get(row, {}),
                apart=found["apart"].get(row, {}),
                compute=counted["ratio"] if counted else None,
                unlike=() if self._computes_as_much(row) else (TITLES[LONGER],),
                silent=self._silent(row),
            )

    def _silent(self, row: str) -> str | None:
        """Return the title of the row that a row is compared with, to see what its prior is worth."""
        spec, sizes = self._layout.spec, self._sizes
        if row not in spec.rows:
            return None
        # The experiment's may be of another task.
        default = spec.silent if spec.silent in sizes else None
        alike = default if default and sizes[row] == sizes[default] else None
        silent = spec.rows[row].silent or alike
        return self._layout.title(silent) if silent and silent != row else None

    def _computes_as_much(self, row: str) -> bool:
        """Whether a row's steps cost what those cost whose compute the backbone alone was given."""
        longer = self._layout.spec.longer
        if longer is None or row not in self._counted:
            return True
        return bool(abs(self._counted[row]["ratio"] / self._counted[longer.like]["ratio"] - 1) <= _AS_MUCH)

    def _about(self) -> str:
        """Return what was measured on what, and what the columns say."""
        return " ".join([self._measured_on(), self._trained_as(), *self._columns_say()])

    def _measured_on(self) -> str:
        spec = self._layout.spec
        asked = spec.tasks[self._task]
        some = next(iter(self._found[""][BASE][spec.seed].values()))
        return (
            f"PSNR in dB and SSIM, mean over {some['images']} images of {Path(asked.data).name} (whole "
            f"images, RGB, 8-bit, protocol `{PROTOCOL}`, seed {asked.seed}). Data sha256 "
            f"`{some['dataset_sha256'][:16]}`."
        )

    def _trained_as(self) -> str:
        layout, spec = self._layout, self._layout.spec
        first = next(iter(spec.rows_of(self._task)))
        refined = layout.refined_spec(self._task, first, layout.seeds(first)[0])
        both = "backbone and refiner" if "backbone" in refined.trained_parts else "the refiner alone"
        if spec.base is None:
            origin = f"{spec.backbone.name}, weights `{spec.backbone.weights}`. From these on:"
        else:
            base = layout.base(self._task).spec
            rows = "Rows, from nothing:" if spec.fresh else "trained once for all rows. From it on:"
            origin = f"{base.steps:,} steps, seed {base.seed}{'.' if spec.fresh else ','} {rows}"
        drawn = "backbone, refiner and patches" if spec.fresh else "the refiner and the patches"
        return (
            f"The backbone: {origin} {refined.steps:,} steps of {both}, by the seed that draws {drawn}; "
            "± is the sample deviation over seeds."
        )

    def _columns_say(self) -> Iterator[str]:
        layout, spec = self._layout, self._layout.spec
        ways = {way for row in layout.rows(self._task) for way in layout.ways(row)}
        if any(self._silent(row) for row in self._found[""]):
            yield (
                "Over silent: the difference to the run of the same seed and the same network whose prior "
                "says nothing; a prior of another width makes another network."
            )
        if "apart" in ways:
            yield (
                "Over its own backbone: the difference to the backbone of the same run without its refiner; "
                "the rest of what is gained over alone is what that backbone learned meanwhile."
            )
        if "mean" in ways:
            yield (
                "Prior's mean instead: what the same weights gain when every image gets the mean that the "
                "prior had in training; a loss is what the prior's word on each image is worth."
            )
        yield (
            "Compute: of a step, against one of the backbone alone (convolutions and matrix products for a "
            "patch; what is trained counts three times its forward pass)."
        )
        if spec.longer:
            like = spec.longer.like
            yield (
                f"Trained longer: {sum(self._counted[like]['steps']):,} steps of the backbone alone, which "
                f"compute as much as those with {layout.title(like)}. Over longer: of rows whose steps "
                "compute as much, to a tenth."
            )


def _refiner_size(runs: _Reports) -> int | None:
    """Return the parameters of the refiner in reports; None while there are none."""
    sizes = (report["refiner_parameters"] for run in runs.values() for report in run.values())
    size: int | None = next(sizes, None)
    return size
