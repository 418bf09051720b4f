"""The published models that have a tag. Data only: no torch, because listing imports this."""

from restorekit.catalog import Pretrained

WEIGHTS: tuple[Pretrained, ...] = ()
