"""Bridge to spandrel: any checkpoint that it recognises becomes a backbone."""

from restorekit_spandrel.bridge import Spandrel

__all__ = ["Spandrel"]
