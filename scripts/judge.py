"""Ask people which of two systems edits better, without telling them which is which.

    python scripts/judge.py power --preference 0.6 --ties 0.2
    python scripts/judge.py make runs/demo --systems deft random --items 100 --raters 3 --out runs/demo/judge
    python scripts/judge.py make test.jsonl --systems new=new.jsonl old=old.jsonl --items 100 --raters 3 --out judge
    python scripts/judge.py collect runs/demo/judge

`make` writes a page for each rater (`raters/`), to be opened in any browser, and what must not be given away
(`key.json`, `assignment.jsonl`). Raters send back the file that their page exports; put these into `answers/`.
`collect` reads them and writes `results/`: `results.json`, `judgments.jsonl` and a page.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from deft_tsds.cli import plain_errors
from deft_tsds.data.examples import read_examples
from deft_tsds.judging.collecting import read_answers, results, rows, unblind
from deft_tsds.judging.making import QUESTIONS, Question, Study, make
from deft_tsds.judging.power import items_needed
from deft_tsds.judging.written import from_files, from_run
from deft_tsds.report.annotate import write_study
from deft_tsds.report.judged import kappa, notes, share, write_judged
from deft_tsds.runs import console, write_json, write_jsonl


@dataclass(frozen=True)
class Make:
    """Draw the items and write the pages."""

    source: tyro.conf.Positional[Path]
    """A run folder, or a file of examples (.jsonl and others)."""
    systems: tuple[str, ...]
    """Two or more: arms of the run, or NAME=FILE with JSON lines of id and prediction."""
    out: Path
    """Folder to write; it must not be there."""
    items: int = 100
    """Examples for every two systems."""
    raters: int = 3
    """How many people judge."""
    overlap: int | None = None
    """Items that every two raters share, at least; all of them by default. Less makes less work, and wider kappas."""
    checks: int = 6
    """Attention checks a rater."""
    identical: Literal["skip", "draw"] = "skip"
    """Examples on which two systems wrote the same: leave them out, or count those drawn as ties unseen."""
    questions: tuple[str, ...] = tuple(f"{one.name}:{one.kind}:{one.text}" for one in QUESTIONS)
    """NAME:KIND:TEXT, KIND one of each (yes or no, of either edit) and which (A, B or no difference)."""
    replicate: int = 0
    """Of a run: the training seed."""
    input: str = "input"
    """Of a file: the field of the input."""
    group: str | None = None
    """Of a file: the field of the task, for results by task."""
    seed: int = 0
    """Fixes the draw."""

    def __call__(self) -> None:
        if self.source.is_dir():
            written = from_run(self.source, self.systems, replicate=self.replicate)
        else:
            files = dict(map(_named, self.systems))
            examples = read_examples(self.source, input_field=self.input, target_field=None, group_field=self.group)
            written = from_files(examples, files)
        study = make(
            written,
            items=self.items,
            raters=self.raters,
            overlap=self.overlap,
            checks=self.checks,
            identical=self.identical,
            questions=[_question(text) for text in self.questions],
            seed=self.seed,
        )
        write_study(study, self.out)
        for pair in study.pairs:
            names, drawn = " and ".join(pair.systems), f", {len(pair.draws)} of them drawn" if pair.draws else ""
            console.print(f"{names} wrote the same on {pair.same} of {pair.examples} examples{drawn}", soft_wrap=True)
        for rater, row in study.order.items():
            console.print(f"{self.out / 'raters' / rater}.html: {len(row)} items", soft_wrap=True)


@dataclass(frozen=True)
class Collect:
    """Read what the raters exported, and say what it shows."""

    study: tyro.conf.Positional[Path]
    """The folder that `make` wrote."""
    answers: tuple[Path, ...] = ()
    """Exported files; those in its folder `answers` by default."""
    attention: float = 0.75
    """Share of the attention checks that a rater must get right to be counted."""
    partial: bool = False
    """Take raters who have not finished."""
    level: float = 0.95
    """Of the intervals."""

    def __call__(self) -> None:
        study, out = Study.load(self.study), self.study / "results"
        answers = read_answers(
            study, self.answers or sorted((self.study / "answers").glob("*.json")), partial=self.partial
        )
        found = results(study, answers, attention=self.attention, level=self.level)
        write_jsonl(out / "judgments.jsonl", rows(unblind(study, answers)))
        write_json(out / "results.json", found)
        page = write_judged(found, out / "judged.html", command=sys.argv)
        shown = Table("question", "", "found", title=f"{100 * self.level:g}% intervals", title_justify="left")
        for name, systems in found["each"].items():
            for system, one in systems.items():
                shown.add_row(name, system, share(one).replace("[", "\\["))
        for name, one in found["agreement"].items():
            shown.add_row(name, "Fleiss' kappa", kappa(one["fleiss"]).replace("[", "\\["))
        console.print(shown)
        said = [f"{name}: {one['verdict']}." for pair in found["pairs"] for name, one in pair["questions"].items()]
        console.print("\n".join([*notes(found), *said, f"page: {page}"]), soft_wrap=True, markup=False)


@dataclass(frozen=True)
class Power:
    """How many items show a preference, for several numbers of judges."""

    preference: float = 0.6
    """Share of the judgments that are no tie which go to the better system."""
    ties: float = 0.2
    """Share of ties."""
    kappa: float = 0.4
    """How far two judges of an item agree beyond chance."""
    judges: tuple[int, ...] = field(default=(1, 2, 3, 5))
    """Judges of each item."""
    level: float = 0.95
    """Of the interval that is to leave out a half."""
    power: float = 0.8
    """How often it is to do so."""

    def __call__(self) -> None:
        table = Table("judges of an item", "items", "judgments")
        for judges in self.judges:
            items = items_needed(
                self.preference, ties=self.ties, judges=judges, kappa=self.kappa, level=self.level, wanted=self.power
            )
            table.add_row(f"{judges}", f"{items:,}", f"{items * judges:,}")
        console.print(table)


def _named(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise ValueError(f"--systems {text!r}: write NAME=FILE, or give a run folder as the source.")
    return name, Path(path)


def _question(text: str) -> Question:
    name, kind, asked = (*text.split(":", 2), "", "")[:3]
    if kind not in ("each", "which") or not asked:
        raise ValueError(f"--questions {text!r}: write NAME:KIND:TEXT, KIND one of each and which.")
    return Question(name, kind, asked)


def main() -> None:
    make, collect = Annotated[Make, tyro.conf.subcommand("make")], Annotated[Collect, tyro.conf.subcommand("collect")]
    part = tyro.cli(make | collect | Annotated[Power, tyro.conf.subcommand("power")], description=__doc__)
    with plain_errors():
        part()


if __name__ == "__main__":
    main()
