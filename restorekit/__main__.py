"""``python -m restorekit``: the command, where its script is not on the path."""

from restorekit.cli import main

main()
