"""Everything that restorekit refuses, and what to do about it.

Each error says what is wrong and where, and its hint is one thing that can be typed or done.
Errors that are bugs (an assertion, a TypeError inside) are not wrapped here and keep their traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RestoreKitError(Exception):
    """Base of all errors that a user can act on.

    Args:
        message: what is wrong and where, without a final full stop.
        hint: one imperative sentence; empty when the message alone is enough.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ConfigError(RestoreKitError):
    """A file or a parameter is wrong; ``where`` is the path of the key, as in ``steps[1].refine``."""

    def __init__(self, where: str, message: str, hint: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message, hint)
        self.where, self.told = where, message

    def below(self, place: str) -> ConfigError:
        """Return the same error, further down: a component does not know where it stands."""
        return ConfigError(f"{place}.{self.where}", self.told, self.hint)


class UnknownComponentError(RestoreKitError, KeyError):
    """No installed distribution offers a component of this name."""

    # KeyError prints the repr of its argument; a message should read as a sentence.
    __str__ = RestoreKitError.__str__


class DuplicateComponentError(RestoreKitError):
    """Two distributions offer a component of the same kind and name."""


class PluginLoadError(RestoreKitError):
    """An installed component cannot be imported, or is not what its entry point promises."""


class ContractError(RestoreKitError):
    """A component broke a promise of contracts.py, for example the shape of its output."""


class WeightsError(RestoreKitError):
    """Weights are missing, damaged, or belong to another network."""


class OfflineError(WeightsError):
    """Weights would have to be downloaded, and downloads are forbidden."""


class LicenceError(RestoreKitError):
    """A component or its weights are outside the licence policy."""


class ImageError(RestoreKitError):
    """An image cannot be read, is not an image, or holds values that cannot be restored."""


class OutputError(RestoreKitError):
    """A result cannot be written: the file exists, or the folder is missing or read-only."""


class MemoryLimitError(RestoreKitError):
    """The image does not fit the device even at the smallest tile."""


class TrainingError(RestoreKitError):
    """A training run cannot start or go on."""


def near(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` for the closest of the known names, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""
