"""Selectors: configured callables `selector(pool, *, budget, key) -> Selection`."""

from __future__ import annotations

from deft_tsds.selectors.baselines import Full, Random
from deft_tsds.selectors.deft import DEFT
from deft_tsds.selectors.hybrids import ClusteredTSDS, ShortlistDEFT
from deft_tsds.selectors.transport import Transport
from deft_tsds.selectors.tsds import TSDS

__all__ = ["DEFT", "TSDS", "ClusteredTSDS", "Full", "Random", "ShortlistDEFT", "Transport"]
