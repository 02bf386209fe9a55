"""What there is to choose from: every selector with what it needs, whether it draws, what it costs, and its source."""

from __future__ import annotations

from dataclasses import dataclass

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
from deft_tsds.selectors.transport import Transport
from deft_tsds.selectors.tsds import TSDS
from deft_tsds.selectors.unbalanced import UnbalancedTransport


@dataclass(frozen=True)
class Entry:
    """One selector."""

    selector: type
    target: str
    """"yes" if it needs queries, "no", or "may" if one of its arguments asks for them."""
    deterministic: bool
    """Whether the key decides nothing, with the default arguments and a pool of at most 16,384 rows."""
    cost: str
    """Operations to leading order: N candidates, M queries, D dimensions, B chosen, K neighbours of a query, U in the
    shortlist, C clusters, P = min(N, 16,384), T iterations."""
    paper: str


class Table(tuple[Entry, ...]):
    """The selectors; prints as a Markdown table."""

    def __str__(self) -> str:
        lines = ["| selector | needs a target | deterministic | cost | paper |", "|---|---|---|---|---|"]
        for entry in self:
            drawn = "yes" if entry.deterministic else "no"
            lines.append(f"| `{entry.selector.__name__}` | {entry.target} | {drawn} | {entry.cost} | {entry.paper} |")
        return "\n".join(lines)


def table() -> Table:
    """Every selector of this package."""
    return Table(
        (
            Entry(TSDS, "yes", False, "N M D + U² D", "arXiv 2410.11303"),
            Entry(Transport, "yes", False, "N M D + T M K", "own objectives on the plans of arXiv 2410.11303"),
            Entry(UnbalancedTransport, "yes", True, "N M D + T M U", "arXiv 2602.14696"),
            Entry(Nearest, "yes", True, "N M D", "arXiv 2602.14696 (doubly greedy)"),
            Entry(RoundRobin, "yes", True, "N M D", "arXiv 2503.01807, 2602.14696"),
            Entry(RDSPlus, "yes", True, "N M D", "arXiv 2503.01807"),
            Entry(LESS, "yes", True, "N M D", "arXiv 2402.04333"),
            Entry(DSIR, "yes", False, "N D, D its buckets", "arXiv 2302.03169"),
            Entry(ShortlistDEFT, "yes", False, "N M D + T U C D", "hybrid of arXiv 2310.16776 and 2410.11303"),
            Entry(ClusteredTSDS, "yes", False, "T N C D + TSDS", "hybrid of arXiv 2310.16776 and 2410.11303"),
            Entry(DEFT, "no", False, "T N C D", "arXiv 2310.16776"),
            Entry(Diverse, "no", False, "N B D", "arXiv 2305.11206"),
            Entry(KCenter, "no", True, "N B D", "Gonzalez 1985, arXiv 1708.00489"),
            Entry(FacilityLocation, "no", True, "N P D, a few times", "Nemhauser et al. 1978, Minoux 1978"),
            Entry(Herding, "may", True, "N P D + N B D", "arXiv 1203.3472"),
            Entry(SemDeDup, "no", False, "T N C D + N² D / C", "arXiv 2303.09540"),
            Entry(Quality, "no", True, "N B D", "Carbonell and Goldstein 1998 (MMR)"),
            Entry(Foreign, "no", True, "N", "what another tool chose"),
            Entry(Random, "no", False, "N", "every paper's baseline"),
            Entry(Full, "no", True, "N", "every paper's baseline"),
        )
    )
