"""A pool of text edits with known defects, queries and six test sets: the text of `make demo`, made by a seed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from deft_tsds.runs import write_jsonl
from deft_tsds.synthetic.defects import near_duplicates as near_duplicates_of
from deft_tsds.synthetic.defects import wrong_target
from deft_tsds.synthetic.edit import Edit, pick
from deft_tsds.synthetic.kinds import INSTRUCTIONS, KINDS
from deft_tsds.synthetic.offtask import OFF_TASK, Pair

Row = dict[str, Any]
Text = TypeVar("Text", Edit, Pair)

FLAGS = ("near_duplicate", "wrong_target", "off_task")
OFF_TASK_NAME = "off-task"

_COPIES_OF_ONE = 3  # near-duplicates come in families, as quoted and reposted text does
_TRIES = 2000


@dataclass(frozen=True)
class Synthetic:
    """Rows as plain dicts: id, task, instruction, input, target (in tests: references), and the three flags."""

    pool: list[Row]
    queries: list[Row]
    tests: dict[str, list[Row]]


def make_editing(
    num_pool: int,
    num_test: int,
    num_queries: int,
    *,
    key: jax.Array,
    near_duplicates: float = 0.15,
    wrong_targets: float = 0.1,
    off_task: float = 0.15,
    query_kinds: Sequence[str] = tuple(KINDS),
) -> Synthetic:
    """Make a pool with known defects, queries, and a test set for each kind of edit. Same key, same rows.

    Clean rows, queries and tests are at least two words apart from one another, so the near-duplicates are those that
    are flagged; none of these is within one word of a query or a test row. No row has two flags.

    Args:
        num_pool: rows of the pool; the kinds share the clean ones, and each sort of defect, as equally as can be.
        num_test: rows of each of the six test sets.
        num_queries: clean rows that say what is wanted, shared equally by `query_kinds`.
        key: a jax PRNG key.
        near_duplicates: share of the pool that copies a clean row but for one word or the last mark, in [0, 1].
        wrong_targets: share of the pool whose target is no answer: the input itself, another row's target, or words
            out of order.
        off_task: share of the pool that is no edit at all: questions, sorting, sums, a made-up language.
        query_kinds: kinds that the queries are of.

    Returns:
        The rows. Shares are exact up to rounding by largest remainder.

    Raises:
        ValueError: a count below 1, a negative share, shares that sum to 1 or more, an unknown kind, or more rows than
            a kind has distinct sentences.
    """
    for name, count in (("num_pool", num_pool), ("num_test", num_test), ("num_queries", num_queries)):
        if count < 1:
            raise ValueError(f"{name} is {count}: at least 1 is needed.")
    shares = {"near_duplicates": near_duplicates, "wrong_targets": wrong_targets, "off_task": off_task}
    for name, share in shares.items():
        if not share >= 0:
            raise ValueError(f"{name} is {share}: give a share of at least 0.")
    if sum(shares.values()) >= 1:
        raise ValueError(f"{shares} sum to 1 or more: leave a share of the pool for clean rows.")
    unknown = [kind for kind in query_kinds if kind not in KINDS]
    if unknown or not query_kinds:
        raise ValueError(f"query_kinds is {tuple(query_kinds)}: give at least one of {', '.join(KINDS)}.")

    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    sentences = _Sentences(rng)

    tests = {kind: _test_rows(rng, kind, sentences.take(KINDS[kind], num_test)) for kind in KINDS}
    queries: list[Row] = []
    for kind, count in zip(query_kinds, _divide(num_queries, [1] * len(query_kinds)), strict=True):
        queries += _rows(rng, kind, sentences.take(KINDS[kind], count))
    sentences.reserve()

    num_clean, num_copied, num_wrong, num_foreign = _divide(num_pool, [1 - sum(shares.values()), *shares.values()])
    pool: list[Row] = []
    by_kind = (_divide(count, [1] * len(KINDS)) for count in (num_clean, num_copied, num_wrong))
    for (kind, make), clean, copied, wrong in zip(KINDS.items(), *by_kind, strict=True):
        originals = sentences.take(make, clean)
        pool += _rows(rng, kind, originals)
        pool += _rows(rng, kind, sentences.copies(originals, copied), near_duplicate=True)
        misled = [Edit(right.source, (wrong_target(rng, right, make(rng)),)) for right in sentences.take(make, wrong)]
        pool += _rows(rng, kind, misled, wrong_target=True)
    for make, count in zip(OFF_TASK, _divide(num_foreign, [1] * len(OFF_TASK)), strict=True):
        for pair in sentences.take(make, count):
            pool.append(_row(OFF_TASK_NAME, pair.instruction, pair.source, target=pair.target, off_task=True))

    return Synthetic(
        pool=_numbered("pool", [pool[position] for position in rng.permutation(len(pool))]),
        queries=_numbered("query", queries),
        tests={kind: _numbered(f"test-{kind}", rows) for kind, rows in tests.items()},
    )


def write_editing(folder: str | Path, num_pool: int, num_test: int, num_queries: int, **settings: Any) -> Synthetic:
    """Make the rows and write `pool.jsonl`, `queries.jsonl` and `tests/<kind>.jsonl`, each atomically.

    Args:
        folder: where to; made if it is not there.
        num_pool, num_test, num_queries, settings: as in `make_editing`.
    """
    made = make_editing(num_pool, num_test, num_queries, **settings)
    folder = Path(folder)
    write_jsonl(folder / "pool.jsonl", made.pool)
    write_jsonl(folder / "queries.jsonl", made.queries)
    for kind, rows in made.tests.items():
        write_jsonl(folder / "tests" / f"{kind}.jsonl", rows)
    return made


class _Sentences:
    """Draws texts that keep two words' distance from all that were drawn before."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._texts: set[str] = set()
        self._near: set[tuple[str, ...]] = set()
        self._reserved: frozenset[tuple[str, ...]] = frozenset()

    def take(self, make: Callable[[np.random.Generator], Text], count: int) -> list[Text]:
        """`count` new texts of one kind."""
        taken: list[Text] = []
        for _ in range(count):
            for _ in range(_TRIES):
                text = make(self._rng)
                if self._near.isdisjoint(_one_word_away(text.source)):
                    break
            else:
                raise ValueError(
                    f"{make.__name__} has no more sentences two words apart after {len(taken)}: ask for fewer rows."
                )
            self._near |= _one_word_away(text.source)
            self._texts.add(text.source)
            taken.append(text)
        return taken

    def reserve(self) -> None:
        """Keep copies, too, away from all that has been taken so far."""
        self._reserved = frozenset(self._near)

    def copies(self, originals: Sequence[Edit], count: int) -> list[Edit]:
        """`count` near-duplicates of the originals, in families."""
        families = [self._copies_of(originals[position]) for position in self._rng.permutation(len(originals))]
        made: list[Edit] = []
        while len(made) < count:
            before = len(made)
            for family in families:
                made += islice(family, min(_COPIES_OF_ONE, count - len(made)))
            if len(made) == before:
                raise ValueError(
                    f"{len(originals)} clean rows of a kind have only {before} near-duplicates, {count} are asked for: "
                    "lower near_duplicates, or make the pool larger."
                )
        return made

    def _copies_of(self, original: Edit) -> Iterator[Edit]:
        options = near_duplicates_of(original)
        for position in self._rng.permutation(len(options)):
            copy = options[position]
            if copy.source not in self._texts and self._reserved.isdisjoint(_one_word_away(copy.source)):
                self._texts.add(copy.source)
                yield copy


def _one_word_away(text: str) -> set[tuple[str, ...]]:
    """The text's words with each one left open: two texts share such a pattern if at most one word differs."""
    words = re.findall(r"[a-z'-]+", text.lower())
    return {(*words[:position], "", *words[position + 1 :]) for position in range(len(words))}


def _divide(total: int, shares: Sequence[float]) -> list[int]:
    """Divide `total` in proportion to `shares` by largest remainder, ties to the first."""
    exact = total * np.asarray(shares, dtype=np.float64) / sum(shares)
    counts = np.floor(exact + 1e-9).astype(int)
    for position in np.argsort(counts - exact, kind="stable")[: total - counts.sum()]:
        counts[position] += 1
    return counts.tolist()


def _row(task: str, instruction: str, source: str, **answer_and_flags: Any) -> Row:
    flags = {flag: answer_and_flags.pop(flag, False) for flag in FLAGS}
    return {"task": task, "instruction": instruction, "input": source} | answer_and_flags | flags


def _rows(rng: np.random.Generator, kind: str, edits: Sequence[Edit], **flags: bool) -> list[Row]:
    return [
        _row(kind, pick(rng, INSTRUCTIONS[kind]), text.source, target=text.references[0], **flags) for text in edits
    ]


def _test_rows(rng: np.random.Generator, kind: str, edits: Sequence[Edit]) -> list[Row]:
    return [_row(kind, pick(rng, INSTRUCTIONS[kind]), text.source, references=[*text.references]) for text in edits]


def _numbered(prefix: str, rows: Sequence[Row]) -> list[Row]:
    return [{"id": f"{prefix}-{number:06d}"} | row for number, row in enumerate(rows)]
