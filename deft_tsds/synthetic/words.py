"""The closed world of the synthetic sentences: a village and its words, as tables.

Every kind of edit speaks of the same people, things and places, so that a small vocabulary makes very many sentences.
"""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    base: str
    singular: str
    past: str


class Noun(NamedTuple):
    singular: str
    plural: str


PEOPLE = tuple(
    Noun(word, word + "s")
    for word in (
        "baker", "barber", "drummer", "farmer", "gardener", "miller", "painter",
        "pilot", "potter", "sailor", "singer", "tailor", "teacher", "weaver",
    )
)  # fmt: skip

THINGS = tuple(
    Noun(word, word + "s")
    for word in (
        "anchor", "apple", "arrow", "orange", "umbrella", "barrel", "basket", "bell", "blanket", "bottle", "chair",
        "clock", "drum", "hammer", "kettle", "kite", "ladder", "lantern", "mirror", "ribbon", "table", "wagon",
    )
)  # fmt: skip

VERBS = tuple(
    Verb(*forms.split())
    for forms in (
        "bring brings brought", "buy buys bought", "carry carries carried", "choose chooses chose",
        "clean cleans cleaned", "count counts counted", "draw draws drew", "find finds found", "hide hides hid",
        "lift lifts lifted", "mend mends mended", "move moves moved", "paint paints painted", "sell sells sold",
        "wash washes washed", "wrap wraps wrapped",
    )
)  # fmt: skip

# Each name with the pronoun that takes its place.
NAMES = {
    "Anton": "he", "Bruno": "he", "Felix": "he", "Hugo": "he", "Kofi": "he", "Omar": "he", "Tom": "he",
    "Carla": "she", "Ines": "she", "Lena": "she", "Mara": "she", "Nadia": "she", "Priya": "she", "Wanda": "she",
}  # fmt: skip
FAMILIES = {"my aunt": "she", "my uncle": "he", "our cousins": "they", "the twins": "they", "the neighbours": "they"}

COLOURS = ("black", "blue", "brown", "green", "grey", "purple", "red", "white", "yellow")
LOOKS = ("dusty", "heavy", "little", "narrow", "round", "shiny", "strange", "tiny", "wide", "wooden")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
PLACES = (
    "barn", "bridge", "chapel", "forest", "garden", "gate", "harbour", "hill", "lake", "market",
    "meadow", "mill", "river", "school", "square", "station", "tower", "well",
)  # fmt: skip
WHERE = ("behind", "beside", "near")
HABITS = tuple(f"every {time}" for time in ("morning", "evening", "day", "week", "month", "summer", "winter"))
PAST_TIMES = ("yesterday", *(f"last {time}" for time in ("night", "week", "month", "summer", "winter")))
OCCASIONS = ("breakfast", "dinner", "the concert", "the festival", "the harvest", "the meeting", "the storm")

# Words that may take each other's place without touching the edit: how a near-duplicate differs from its original.
INTERCHANGEABLE = (COLOURS, LOOKS, NUMBERS, PLACES, WHERE)
