"""What people said of two systems: answers read and checked, sides turned back to systems, and what follows from them.

An item counts once, whatever its number of judges: its score is their mean. Intervals are over examples (see
`deft_tsds.judging.clustered`); they speak for these raters, whose number is always too small to speak for others.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deft_tsds.judging.agreement import agreement
from deft_tsds.judging.clustered import clustered_mean, unanimous
from deft_tsds.judging.making import Item, Study

Answers = Mapping[str, Mapping[str, str]]
"""What one rater said: by item, by field, as in the file that the page exports."""


@dataclasses.dataclass(frozen=True)
class Judgment:
    """What one rater said of one item: of a question `each` by system, of a question `which` a system or "tie"."""

    rater: str
    item: Item
    each: Mapping[str, Mapping[str, bool]]
    which: Mapping[str, str]


def read_answers(study: Study, paths: Sequence[Path], *, partial: bool = False) -> dict[str, Answers]:
    """The answers of each rater, from the files that their pages exported.

    Args:
        study: what was asked.
        paths: one file a rater.
        partial: take raters who have not answered everything.

    Raises:
        ValueError: no files; a file that is no such export, of another study, or of a rater whose file was already
            read; an item that this rater was not given, or an answer that could not be given; unless `partial`, an
            item without all of its answers.
    """
    if not paths:
        raise ValueError("there are no answers: put the files that the raters exported into the folder `answers`.")
    found: dict[str, Answers] = {}
    sources: dict[str, Path] = {}
    for path in paths:
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read as JSON ({type(error).__name__}). Export it again.") from error
        if not isinstance(given, dict) or set(given) != {"study", "rater", "answers"}:
            raise ValueError(f"{path} is not what a page exports: it needs study, rater and answers, and nothing else.")
        rater = given["rater"]
        if given["study"] != study.id:
            raise ValueError(f"{path} answers study {_shown(given['study'])}, and this one is {study.id}. Take it out.")
        if not isinstance(rater, str) or rater not in study.order:
            raise ValueError(f"{path}: there is no rater {_shown(rater)}, only {', '.join(study.order)}.")
        if rater in sources:
            raise ValueError(f"{path} and {sources[rater]} are both of {rater}: take one of them out.")
        found[rater], sources[rater] = _checked(study, rater, given["answers"], path, partial), path
    return found


def unblind(study: Study, answers: Mapping[str, Answers]) -> list[Judgment]:
    """Each complete answer, its sides turned back to systems; raters as in the study, items in the order shown."""
    judgments = []
    for rater in (name for name in study.order if name in answers):
        for shown in (item for item in study.shown(rater) if item.id in answers[rater]):
            said, (a, b) = answers[rater][shown.id], shown.systems
            each, which = {}, {}
            for question in study.questions:
                if question.kind == "each":
                    yes = {a: said[f"{question.name}_a"] == "yes", b: said[f"{question.name}_b"] == "yes"}
                    each[question.name] = {system: yes[system] for system in study.items[shown.id].systems}
                else:
                    which[question.name] = {"a": a, "b": b, "tie": "tie"}[said[question.name]]
            judgments.append(Judgment(rater, study.items[shown.id], each, which))
    return judgments


def results(
    study: Study,
    answers: Mapping[str, Answers],
    *,
    attention: float = 0.75,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """What the study shows, as JSON.

    Args:
        study: what was asked.
        answers: of each rater.
        attention: share of the attention checks that a rater must get right to be counted.
        level: of the intervals. Those of preferences hold together at this level where several pairs were compared
            (Bonferroni).
        resamples, seed: of the bootstrap.

    Raises:
        ValueError: no rater is left, or a bound outside its range.
    """
    if not 0 <= attention <= 1:
        raise ValueError(f"attention is {attention}: give a share from 0 (keep everyone) to 1.")
    judgments = unblind(study, answers)
    raters = [_rater(study, name, judgments, attention) for name in study.order if name in answers]
    kept = [one["name"] for one in raters if not one["dropped"]]
    if not kept:
        raise ValueError(
            f"no rater got {attention:.0%} of the attention checks right: there is nothing to report. "
            "Look at the answers before you ask for less attention."
        )
    judgments = [one for one in judgments if one.rater in kept and one.item.kind == "pair"]
    if not judgments:
        raise ValueError("the raters who are left have judged no item completely: there is nothing to report.")
    sure = {"level": level, "resamples": resamples, "seed": seed}
    together = {**sure, "level": 1 - (1 - level) / len(study.pairs)}
    return {
        "study": study.id,
        "level": level,
        "attention": attention,
        "questions": [dataclasses.asdict(question) for question in study.questions],
        "raters": raters,
        "absent": [name for name in study.order if name not in answers],
        "pairs": [_pair(study, place, judgments, together) for place in range(len(study.pairs))],
        "each": {
            question.name: _shares(question.name, judgments, sure)
            for question in study.questions
            if question.kind == "each"
        },
        "agreement": {
            question.name: _agreement(question.name, question.kind, judgments, kept, sure)
            for question in study.questions
        },
        "disagreements": _disagreements(judgments),
    }


def rows(judgments: Sequence[Judgment]) -> list[dict[str, Any]]:
    """Judgments as JSON, one a row."""
    return [
        {
            "rater": one.rater,
            "item": one.item.id,
            "kind": one.item.kind,
            "example": one.item.example,
            "task": one.item.task,
            "systems": list(one.item.systems),
            "each": one.each,
            "which": one.which,
        }
        for one in judgments
    ]


def _checked(study: Study, rater: str, given: Any, path: Path, partial: bool) -> Answers:
    mine = list(study.order[rater])
    if not isinstance(given, dict):
        raise ValueError(f"{path}: answers is {_shown(given)}: it must be an object with an entry for each item.")
    for item, said in given.items():
        if item not in mine:
            raise ValueError(f"{path}: {rater} was not given the item {_shown(item)}.")
        if not isinstance(said, dict):
            raise ValueError(f"{path}, item {item}: {_shown(said)} is no object of answers.")
        for field, answer in said.items():
            options = study.fields.get(field)
            if options is None or not isinstance(answer, str) or answer not in options:
                allowed = f"its answers are {', '.join(options)}" if options else f"ask for {', '.join(study.fields)}"
                raise ValueError(f"{path}, item {item}: {_shown(field)} is {_shown(answer)}; {allowed}.")
    complete = {item: given[item] for item in mine if len(given.get(item, ())) == len(study.fields)}
    if len(complete) < len(mine) and not partial:
        raise ValueError(
            f"{path}: {rater} has not answered {len(mine) - len(complete)} of {len(mine)} items. Have the rater go on "
            "and export again, or take what there is by --partial."
        )
    return complete


def _rater(study: Study, name: str, judgments: Sequence[Judgment], attention: float) -> dict[str, Any]:
    mine = [one for one in judgments if one.rater == name]
    checks = [one for one in mine if one.item.kind != "pair"]
    known = {"reversed": "kept", "same": "tie"}
    right = sum(one.which[study.which] == known[one.item.kind] for one in checks if study.which)
    return {
        "name": name,
        "judged": len(mine) - len(checks),
        "given": sum(study.items[item].kind == "pair" for item in study.order[name]),
        "checks": len(checks),
        "right": right,
        "dropped": right < attention * len(checks),
    }


def _pair(study: Study, place: int, judgments: Sequence[Judgment], sure: Mapping[str, Any]) -> dict[str, Any]:
    """Preferences between the two systems of a pair, overall and by task."""
    pair = study.pairs[place]
    mine = [one for one in judgments if one.item.systems == pair.systems]
    found: dict[str, Any] = {
        "systems": list(pair.systems),
        "examples": pair.examples,
        "same": pair.same,
        "draws": len(pair.draws),
        "questions": {},
    }
    for question in study.questions:
        if question.kind == "which":
            scores = _scores(pair.systems[0], question.name, mine) | {
                example: (task, 0.5) for example, task in pair.draws
            }
            said = Counter(one.which[question.name] for one in mine)
            overall = _mean(scores, sure)
            tasks = sorted({task for task, _ in scores.values()})
            found["questions"][question.name] = {
                **overall,
                "said": {name: said[name] for name in (pair.systems[0], "tie", pair.systems[1])},
                "verdict": sentence(
                    pair.systems, overall, raters=len({one.rater for one in mine}), level=sure["level"]
                ),
                "tasks": {
                    task: _mean({key: value for key, value in scores.items() if value[0] == task}, sure)
                    for task in tasks
                },
            }
    return found


def sentence(systems: tuple[str, str], found: Mapping[str, Any], *, raters: int, level: float) -> str:
    """A preference in words: "deft better than tsds: yes, 61% [54%, 68%] of 100 items, ties as halves, 3 raters".

    Nothing is claimed from so few items that even one voice in all of them would show nothing.
    """
    first, second = systems
    if found["value"] is None:
        return f"{first} better than {second}: nothing was judged"
    answer = "yes" if found["low"] > 0.5 else "no, worse" if found["high"] < 0.5 else "not shown"
    answer = answer if unanimous(found["items"], level) > 0.5 else "too few items to say"
    return (
        f"{first} better than {second}: {answer}, {found['value']:.0%} [{found['low']:.0%}, {found['high']:.0%}] of "
        f"{found['items']} items, ties as halves, {raters} {'rater' if raters == 1 else 'raters'}"
    )


def _scores(first: str, question: str, judgments: Sequence[Judgment]) -> dict[str, tuple[str, float]]:
    """The task of each example, and how far its judges prefer the first system: 1, 1/2 or 0, their mean."""
    said: dict[str, list[float]] = defaultdict(list)
    tasks = {one.item.example: one.item.task for one in judgments}
    for one in judgments:
        answer = one.which[question]
        said[one.item.example].append(0.5 if answer == "tie" else float(answer == first))
    return {example: (tasks[example], float(np.mean(values))) for example, values in said.items()}


def _mean(scores: Mapping[str, tuple[str, float]], sure: Mapping[str, Any]) -> dict[str, Any]:
    if not scores:
        return {"value": None, "low": None, "high": None, "items": 0}
    found = clustered_mean([value for _, value in scores.values()], list(scores), **sure)
    return {**found._asdict(), "items": len(scores)}


def _shares(question: str, judgments: Sequence[Judgment], sure: Mapping[str, Any]) -> dict[str, Any]:
    """The share of a system's texts that are said to be so, overall and by task."""
    said: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    tasks = {one.item.example: one.item.task for one in judgments}
    for one in judgments:
        for system, answer in one.each[question].items():
            said[system][one.item.example].append(answer)
    found = {}
    for system, by_example in said.items():
        scores = {example: (tasks[example], float(np.mean(values))) for example, values in by_example.items()}
        names = sorted({task for task, _ in scores.values()})
        found[system] = {
            **_mean(scores, sure),
            "tasks": {name: _mean({k: v for k, v in scores.items() if v[0] == name}, sure) for name in names},
        }
    return found


def _agreement(
    question: str, kind: str, judgments: Sequence[Judgment], raters: Sequence[str], sure: Mapping[str, Any]
) -> dict[str, Any]:
    """Kappas on what was judged: an item where it was asked which, a text where it was asked of each."""
    given: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    clusters: dict[tuple[str, str], str] = {}
    for one in judgments:
        if kind == "which":
            said = {"": (*one.item.systems, "tie").index(one.which[question])}
        else:
            said = {system: int(answer) for system, answer in one.each[question].items()}
        for system, category in said.items():
            given[one.item.id, system][one.rater] = category
            clusters[one.item.id, system] = one.item.example
    ratings_NxR = np.array([[row.get(rater, -1) for rater in raters] for row in given.values()])
    found = agreement(ratings_NxR, list(clusters.values()), categories=3 if kind == "which" else 2, **sure)
    return {
        "fleiss": found.fleiss._asdict(),
        "cohen": [{"raters": [raters[a], raters[b]], **kappa._asdict()} for (a, b), kappa in found.cohen.items()],
    }


def _disagreements(judgments: Sequence[Judgment]) -> list[dict[str, Any]]:
    """The items on which raters differ, those on which they differ most first."""
    by_item: dict[str, list[Judgment]] = defaultdict(list)
    for one in judgments:
        by_item[one.item.id].append(one)
    found = []
    for several in by_item.values():
        said = [json.dumps([one.each, one.which], sort_keys=True) for one in several]
        item, alike = several[0].item, sum(count * (count - 1) for count in Counter(said).values())
        if len(set(said)) > 1:
            found.append(
                {
                    "item": item.id,
                    "example": item.example,
                    "task": item.task,
                    "input": item.input,
                    "systems": list(item.systems),
                    "texts": list(item.texts),
                    "differing": 1 - alike / (len(said) * (len(said) - 1)),
                    "said": {one.rater: {"each": one.each, "which": one.which} for one in several},
                }
            )
    return sorted(found, key=lambda row: (-row["differing"], row["item"]))


def _shown(value: Any) -> str:
    """A hostile value, short enough for an error."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
