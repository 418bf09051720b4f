"""Reports of an experiment as a table in Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        name: what it is, for people.
        reports: facts of a report for each column that it has.
        parameters: of all its networks together; None where that means nothing.
        restored: whether a network made it, which then closes some of a gap.
    """

    name: str
    reports: Mapping[str, Mapping[str, Any]]
    parameters: int | None = None
    restored: bool = True

    def mean(self, columns: Sequence[str], metric: str = "psnr") -> float | None:
        """Return the mean over the columns; None where one is missing."""
        values = [self.value(column, metric) for column in columns]
        return None if None in values else statistics.fmean(value for value in values if value is not None)

    def value(self, column: str, metric: str = "psnr") -> float | None:
        """Return one figure; None where it was not measured, or images came back unchanged."""
        value = self.reports.get(column, {}).get(metric)
        return None if value is None else float(value)


def read_reports(files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Return the facts of the reports that exist, by column."""
    return {
        column: json.loads(path.read_text(encoding="utf-8"))
        for column, path in files.items()
        if path.exists()
    }


def markdown(
    lines: Sequence[Line], columns: Sequence[str], extra: Sequence[str] = (), share: str = ""
) -> str:
    """Return a table of PSNR in dB.

    Args:
        lines: from top to bottom.
        columns: that the average is over.
        extra: further columns, not in the average.
        share: ``LOWER:UPPER``, names of lines: adds how much of the gap between their averages is closed.
    """
    header = ["", *columns, "average", *extra, "parameters", *(["of the gap"] if share else [])]
    rows = [header, ["---", *("---:" for _ in header[1:])]]
    by_name = {line.name: line.mean(columns) for line in lines}
    lower, upper = (by_name.get(name) for name in share.split(":")) if share else (None, None)
    for line in lines:
        mean = line.mean(columns)
        cells = [line.name, *(_decibel(line.value(column)) for column in columns), _decibel(mean)]
        cells += [_decibel(line.value(column)) for column in extra]
        cells.append("" if line.parameters is None else f"{line.parameters:,}")
        if share:
            known = mean is not None and lower is not None and upper is not None and upper != lower
            known = known and line.restored
            cells.append(f"{(mean - lower) / (upper - lower):.0%}" if known else "")  # type: ignore[operator]
        rows.append(cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _decibel(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


@dataclass(frozen=True)
class Repeated:
    """One line of a table that compares runs of several seeds.

    Attributes:
        name: what it is, for people.
        runs: by seed, facts of a report for each column; those that lack a column do not count.
        parameters: that it adds to the backbone; None where that means nothing.
        seeded: whether there are seeds to count.
        instead: of runs whose refiner was told the mean of its prior, as ``runs``.
        apart: of the backbones of the runs without their refiners, as ``runs``.
        compute: of a step of training, against one of the backbone alone; None where that is one.
        unlike: names of lines that it is not to be compared with.
        silent: name of the line of the same network whose prior says nothing. Another prior's width makes
            another network, whose other start can be worth more than any prior.
    """

    name: str
    runs: Mapping[int, Mapping[str, Mapping[str, Any]]]
    parameters: int | None = None
    seeded: bool = True
    instead: Mapping[int, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    apart: Mapping[int, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    compute: float | None = None
    unlike: Collection[str] = ()
    silent: str | None = None

    def whole(self, columns: Sequence[str]) -> list[Line]:
        """Return the runs that have every column."""
        return [Line(self.name, run) for run in self.runs.values() if {*columns} <= run.keys()]

    def over(
        self, runs: Mapping[int, Mapping[str, Mapping[str, Any]]], columns: Sequence[str]
    ) -> list[float]:
        """Return how much the average is above that of other runs, for each seed that both have."""
        found = []
        for seed in sorted(self.runs.keys() & runs.keys()):
            ours, theirs = (Line(self.name, each[seed]).mean(columns) for each in (self.runs, runs))
            found += [ours - theirs] if ours is not None and theirs is not None else []
        return found

    def values(self, columns: Sequence[str], of: Sequence[str], metric: str = "psnr") -> list[float]:
        """Return for each run that has every column the mean over some of them, where that is known."""
        means = [line.mean(of, metric) for line in self.whole(columns)]
        return [mean for mean in means if mean is not None]


def compared(
    lines: Sequence[Repeated],
    columns: Sequence[str],
    over: Mapping[str, str],
) -> str:
    """Return a table of PSNR in dB and SSIM, means and sample deviations over seeds.

    Args:
        lines: from top to bottom.
        columns: that averages are over; with one there is no average.
        over: names of lines by heading: adds how much the average of lines with seeds is above
            theirs.
    """
    # Seed by seed and to three decimals: these differences are small beside what seeds make.
    paired = ["over silent"] if any(line.silent for line in lines) else []
    instead = ["prior's mean instead"] if any(line.instead for line in lines) else []
    apart = ["over its own backbone"] if any(line.apart for line in lines) else []
    by_name = {line.name: line for line in lines}
    averages = ["average"] if len(columns) > 1 else []
    compute = ["compute"] if any(line.compute for line in lines) else []
    header = ["", *columns, *averages, "SSIM", *over, *paired, *apart, *instead]
    header += ["parameters added", *compute, "seeds"]
    rows = [header, ["---", *("---:" for _ in header[1:])]]
    average = {line.name: line.values(columns, columns) for line in lines}
    for line in lines:
        cells = [line.name, *(_spread(line.values(columns, [column]), 2) for column in columns)]
        cells += [_spread(average[line.name], 2) for _ in averages]
        cells.append(_spread(line.values(columns, columns, "ssim"), 4))
        for name in over.values():
            ours, theirs = average[line.name], average.get(name)
            known = ours and theirs and line.seeded and name not in (line.name, *line.unlike)
            cells.append(f"{statistics.fmean(ours) - statistics.fmean(theirs):+.2f}" if known else "")  # type: ignore[arg-type]
        silent = by_name.get(line.silent or "")
        cells += [_spread(line.over(silent.runs, columns), 3, "+") if silent else "" for _ in paired]
        cells += [_spread(line.over(line.apart, columns), 3, "+") for _ in apart]
        cells += [_spread([-gain for gain in line.over(line.instead, columns)], 3, "+") for _ in instead]
        cells.append("" if line.parameters is None else f"{line.parameters:,}")
        cells += [f"{line.compute:.2f} x" if line.compute else "" for _ in compute]
        cells.append(f"{len(line.whole(columns))}" if line.seeded else "")
        rows.append(cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _spread(values: Sequence[float], digits: int, sign: str = "") -> str:
    if not values:
        return ""
    mean = f"{statistics.fmean(values):{sign}.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
