"""``restorekit adapt``: an adaptive model for any set of degradations, from one YAML file."""

from __future__ import annotations

from pathlib import Path

from restorekit.cli.experiment import Config, Folder, Write, make, read
from restorekit.cli.output import AsJson, Device, Settings, say, say_json
from restorekit.files import Marks


def adapt(
    config: Config,
    output: Folder = None,
    settings: Settings = None,
    write: Write = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train a unified model, find the filters of each degradation, train them and their classifier, compare.

    What is made already is kept: a killed run goes on where it was.
    """
    from restorekit.experiments.spec import AdaptiveSpec

    spec = read(AdaptiveSpec, config, settings)
    # Looked for before the work, not after it.
    place = Marks(write, config.stem) if write else None

    from restorekit.experiments.adaptive import Experiment

    experiment = Experiment(spec, output or Path("runs") / config.stem, device)
    make(experiment.jobs())
    made = experiment.made()
    if place:
        place.write(made.markdown)
    if as_json:
        say_json({**made.facts, "backbone": str(made.backbone), "adapter": str(made.adapter)})
        return
    if made.markdown:
        say(made.markdown)
    say(f"backbone {made.backbone}\nadapter {made.adapter}")
