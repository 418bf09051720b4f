"""How long the commands take that must not import torch: median of whole processes, interleaved.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

RESTOREKIT = str(Path(sys.executable).with_name("restorekit"))
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import restorekit": [sys.executable, "-c", "import restorekit"],
    "restorekit --help": [RESTOREKIT, "--help"],
    "restorekit list": [RESTOREKIT, "list"],
    "restorekit plan denoise": [RESTOREKIT, "plan", "denoise"],
}
ROUNDS = 9


def main() -> None:
    """Print a line a command."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
    for name, times in seconds.items():
        print(f"{name:26} median {statistics.median(times):.3f} s   least {min(times):.3f} s")


if __name__ == "__main__":
    main()
