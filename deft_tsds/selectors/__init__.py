"""Selectors: configured callables `selector(pool, *, budget, key) -> Selection`. `table()` lists them.

Example:
    >>> def first(pool, *, budget, key):  # one's own selector
    ...     return dt.Selection.of(np.arange(budget))
    >>> dt.select(np.eye(5), selector=first, budget=2, key=jax.random.key(0)).indices
    array([0, 1])
    >>> dt.select(np.eye(5), selector=dt.selectors.Random(), budget=2, key=jax.random.key(0)).indices.shape
    (2,)
"""

from __future__ import annotations

from deft_tsds.selectors.baselines import Full, Random
from deft_tsds.selectors.deft import DEFT
from deft_tsds.selectors.dsir import DSIR
from deft_tsds.selectors.facility import FacilityLocation
from deft_tsds.selectors.foreign import Foreign
from deft_tsds.selectors.herding import Herding
from deft_tsds.selectors.hybrids import ClusteredTSDS, ShortlistDEFT
from deft_tsds.selectors.nearest import LESS, Nearest, RDSPlus, RoundRobin
from deft_tsds.selectors.quality import Quality
from deft_tsds.selectors.semdedup import SemDeDup
from deft_tsds.selectors.spread import Diverse, KCenter
from deft_tsds.selectors.table import table
from deft_tsds.selectors.transport import Transport
from deft_tsds.selectors.tsds import TSDS
from deft_tsds.selectors.unbalanced import UnbalancedTransport

__all__ = [
    "DEFT",
    "DSIR",
    "LESS",
    "TSDS",
    "ClusteredTSDS",
    "Diverse",
    "FacilityLocation",
    "Foreign",
    "Full",
    "Herding",
    "KCenter",
    "Nearest",
    "Quality",
    "RDSPlus",
    "Random",
    "RoundRobin",
    "SemDeDup",
    "ShortlistDEFT",
    "Transport",
    "UnbalancedTransport",
    "table",
]
