"""Pairs that teach something else than editing: what a pool gathered from many places also holds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deft_tsds.synthetic.edit import A, pick, write
from deft_tsds.synthetic.words import COLOURS, NAMES, NUMBERS, PLACES, THINGS, WHERE


class Pair(NamedTuple):
    instruction: str
    source: str
    target: str


_DIGITS = ("zero", "one", *NUMBERS)
_CODE_VOWELS, _CODE_CONSONANTS = "aiou", "bdgklmnrt"


def _several(rng: np.random.Generator, choices: tuple[str, ...], count: int) -> list[str]:
    """Distinct choices in random order."""
    return [choices[index] for index in rng.permutation(len(choices))[:count]]


def question(rng: np.random.Generator) -> Pair:
    """Who has which thing."""
    names = _several(rng, tuple(NAMES), 3)
    things = _several(rng, tuple(thing.singular for thing in THINGS), 3)
    asked = int(rng.integers(3))
    facts = [f"{name} has {A} {thing}" for name, thing in zip(names, things, strict=True)]
    source = write(facts[0], ",", facts[1], "and", facts[2], f". Who has the {things[asked]} ?")
    return Pair("Answer the question", source, names[asked])


def sorting(rng: np.random.Generator) -> Pair:
    """Words in the order of the alphabet."""
    words = _several(rng, COLOURS + PLACES, int(rng.integers(4, 7)))
    return Pair("Sort these words from A to Z", ", ".join(words), ", ".join(sorted(words)))


def arithmetic(rng: np.random.Generator) -> Pair:
    """A sum of three small numbers, in words."""
    amounts = rng.multinomial(int(rng.integers(7)), (1 / 3, 1 / 3, 1 / 3)) + 2
    words = [_DIGITS[amount] for amount in amounts]
    thing = pick(rng, THINGS).plural
    places = _several(rng, PLACES, 3)
    found = [f"{word} {thing} {pick(rng, WHERE)} the {place}" for word, place in zip(words, places, strict=True)]
    source = write("there are", found[0], ",", found[1], "and", found[2], ".")
    return Pair(f"How many {thing} are there", source, _DIGITS[int(amounts.sum())])


def code(rng: np.random.Generator) -> Pair:
    """Each word has one word of the owls."""
    lexicon = COLOURS + PLACES
    positions = rng.permutation(len(lexicon))[: int(rng.integers(4, 7))]
    syllables = [consonant + vowel for consonant in _CODE_CONSONANTS for vowel in _CODE_VOWELS]
    source = " ".join(lexicon[position] for position in positions)
    return Pair("Say this in the language of the owls", source, " ".join(syllables[position] for position in positions))


OFF_TASK = (question, sorting, arithmetic, code)
