"""Six kinds of edit: for each, the table of what changes into what, and one function that puts it into a sentence.

What is right follows from the source alone, by rules a reader can state: that is what makes them learnable.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deft_tsds.synthetic.edit import A, Edit, Swap, edit, pick, some, write
from deft_tsds.synthetic.words import (
    COLOURS,
    FAMILIES,
    HABITS,
    LOOKS,
    NAMES,
    NUMBERS,
    OCCASIONS,
    PAST_TIMES,
    PEOPLE,
    PLACES,
    THINGS,
    VERBS,
    WHERE,
)


def _place(rng: np.random.Generator) -> str:
    return f"{pick(rng, WHERE)} the {pick(rng, PLACES)}"


def _look(rng: np.random.Generator) -> str:
    return pick(rng, COLOURS + LOOKS)


def grammar(rng: np.random.Generator) -> Edit:
    """Agreement, tense, articles and plurals: `Last week the baker sell an drum.` -> `... sold a drum.`"""
    verb, person, thing = pick(rng, VERBS), pick(rng, PEOPLE), pick(rng, THINGS)
    who = pick(rng, person)
    if rng.random() < 0.5:
        when = pick(rng, HABITS)
        right, wrong = (verb.singular, verb.base) if who == person.singular else (verb.base, verb.singular)
    else:
        when = pick(rng, PAST_TIMES)
        right, wrong = verb.past, pick(rng, (verb.base, verb.singular))

    look, case = pick(rng, ("", _look(rng))), rng.integers(4)
    one, several = f"{look} {thing.singular}".strip(), f"{look} {thing.plural}".strip()
    if case == 0:
        number = pick(rng, (*NUMBERS, "many"))
        what = Swap(f"{number} {one}", f"{number} {several}")
    elif case == 1:
        what = Swap(f"these {one}", f"these {several}", f"this {one}")
    elif case == 2:
        what = Swap(f"{'a' if one[0] in 'aeiou' else 'an'} {one}", f"{A} {one}")
    else:
        what = Swap(one, f"{A} {one}", f"the {one}")
    does, what = some(rng, [Swap(wrong, right), what])
    return edit(when, "the", who, does, what, _place(rng), ".")


_PLAIN_PEOPLE = (
    Swap("attorney", "lawyer"), Swap("infant", "baby"), Swap("mariner", "sailor"), Swap("monarch", "king"),
    Swap("physician", "doctor"), Swap("vocalist", "singer"), Swap("educator", "teacher"),
)  # fmt: skip
_PLAIN_VERBS = (
    Swap("acquired", "got"), Swap("concealed", "hid"), Swap("discovered", "found"), Swap("examined", "checked"),
    Swap("observed", "saw"), Swap("purchased", "bought"), Swap("repaired", "mended"), Swap("requested", "asked for"),
    Swap("selected", "chose"), Swap("transported", "carried"),
)  # fmt: skip
_PLAIN_AMOUNTS = (
    Swap("additional", "more"), Swap("numerous", "many"), Swap("sufficient", "enough"), Swap("a multitude of", "many"),
)  # fmt: skip
_PLAIN_THINGS = (
    Swap("beverages", "drinks"), Swap("documents", "papers"), Swap("garments", "clothes"), Swap("implements", "tools"),
    Swap("illustrations", "pictures"), Swap("residences", "homes"), Swap("vehicles", "cars"),
    Swap("vessels", "boats"),
)  # fmt: skip
_PLAIN_WHERE = (Swap("in the vicinity of", "near"), Swap("adjacent to", "next to"), Swap("to the rear of", "behind"))
_PLAIN_WHEN = (Swap("prior to", "before"), Swap("subsequent to", "after"))


def simplification(rng: np.random.Generator) -> Edit:
    """Long words become short ones, a side remark goes: `The physician, who owned a red kite, acquired ...`"""
    if rng.random() < 0.5:
        link, point = pick(rng, _PLAIN_WHERE), f"the {pick(rng, PLACES)}"
    else:
        link, point = pick(rng, _PLAIN_WHEN), pick(rng, OCCASIONS)
    tables = _PLAIN_PEOPLE, _PLAIN_VERBS, _PLAIN_AMOUNTS, _PLAIN_THINGS
    who, did, amount, what, link = some(rng, [*(pick(rng, table) for table in tables), link])
    rest = did, amount, what, link, point, "."
    if rng.random() < 0.6:
        return edit("the", who, *rest)
    remark = f"{pick(rng, ('lived', 'worked'))} {_place(rng)}"
    sentence = edit("the", who, Swap(f", who {remark} ,", ""), *rest)
    # To drop the remark is right, and so is to give it a sentence of its own.
    split = write(sentence.references[0], "the", who.after, remark, ".")
    return Edit(sentence.source, (*sentence.references, split))


_BRIEF_DECIDED = (
    Swap("made the decision to", "decided to"), Swap("came to the decision to", "decided to"),
    Swap("made an attempt to", "tried to"), Swap("made a promise to", "promised to"),
    Swap("had the ability to", "could"), Swap("was in a position to", "could"),
)  # fmt: skip
_BRIEF_ALL = (Swap("each and every", "every"), Swap("one single", "one"), Swap("the one and only", "the only"))
_BRIEF_BECAUSE = (
    Swap("due to the fact that", "because", "since"), Swap("for the reason that", "because", "since"),
    Swap("in spite of the fact that", "although", "though"), Swap("despite the fact that", "although", "though"),
    Swap("during the time that", "while"), Swap("until such time as", "until"), Swap("at the time when", "when"),
)  # fmt: skip
_BRIEF_TO = (Swap("in order to", "to"), Swap("with the aim to", "to"), Swap("so as to", "to"))
_GOALS = (
    "earn some money", "help the neighbours", "please the children", "prepare for winter", "save some time",
    "surprise the teacher", "win the prize",
)  # fmt: skip
_STATES = ("cold", "crowded", "dark", "dirty", "empty", "quiet", "warm", "wet")


def clarity(rng: np.random.Generator) -> Edit:
    """Wordy phrases shrink: `washed each and every bell in order to ...` -> `washed every bell to ...`"""
    verb, thing, colour = pick(rng, VERBS), pick(rng, THINGS).singular, pick(rng, COLOURS)
    start, template = ("the", pick(rng, PEOPLE).singular), rng.integers(3)
    if template == 0:
        every, to = some(rng, [pick(rng, _BRIEF_ALL), pick(rng, _BRIEF_TO)])
        return edit(*start, verb.past, every, colour, thing, to, pick(rng, _GOALS), ".")
    if template == 1:
        in_colour = Swap(f"{thing} that was {colour} in colour", f"{colour} {thing}")
        decided, in_colour = some(rng, [pick(rng, _BRIEF_DECIDED), in_colour])
        return edit(*start, decided, verb.base, "the", in_colour, _place(rng), ".")
    reason = pick(rng, _BRIEF_BECAUSE), "the", pick(rng, PLACES), "was", pick(rng, _STATES)
    return edit(*start, verb.past, "the", colour, thing, *reason, ".")


_WISHES = (
    "felt lonely", "had no money", "hoped for luck", "liked the work", "loved the view", "needed a present",
    "needed the space", "wanted a change",
)  # fmt: skip
_TROUBLES = (
    "broke the lamp", "felt ill", "felt tired", "forgot the map", "had a cold", "lost the key", "missed the train",
    "tore the sail",
)  # fmt: skip


# Two sentences, the one that they become, and another right way to join them.
_JOINS = (
    (
        "{who} {did} the {deed}. {who} {wish}.",
        "{who} {did} the {deed} because {they} {wish}.",
        "{who} {did} the {deed} as {they} {wish}.",
    ),
    (
        "{who} {trouble}. However, {who} {did} the {deed}.",
        "{who} {trouble}, but {they} {did} the {deed}.",
        "Although {who} {trouble}, {they} {did} the {deed}.",
    ),
    (
        "{who} {trouble}. As a result, {who} {did} the {deed}.",
        "{who} {trouble}, so {they} {did} the {deed}.",
        "Because {who} {trouble}, {they} {did} the {deed}.",
    ),
    (
        "{who} {first} a(n) {other}. After that, {who} {did} the {deed}.",
        "{who} {first} a(n) {other} and then {did} the {deed}.",
    ),
    (
        "{who} {did} a(n) {other} {place}. The {other} was {look}.",
        "{who} {did} a(n) {look} {other} {place}.",
    ),
)


def coherence(rng: np.random.Generator) -> Edit:
    """Two sentences become one, with a connective and a pronoun: `... . However, Mara ...` -> `..., but she ...`"""
    subjects = NAMES | FAMILIES
    who = pick(rng, tuple(subjects))
    look, place = _look(rng), _place(rng)
    words = {
        "who": who,
        "they": subjects[who],
        "did": pick(rng, VERBS).past,
        "deed": f"{look} {pick(rng, THINGS).singular} {place}",
        "first": pick(rng, VERBS).past,
        "other": pick(rng, THINGS).singular,
        "look": look,
        "place": place,
        "wish": pick(rng, _WISHES),
        "trouble": pick(rng, _TROUBLES),
    }
    source, *references = (write(text.format(**words)) for text in pick(rng, _JOINS))
    return Edit(source, tuple(references))


_PRAISE_OR_BLAME = (
    "amazing", "awful", "brilliant", "dreadful", "foolish", "glorious", "heroic", "legendary", "pathetic",
    "ridiculous", "shameful", "so-called", "stunning", "superb", "ugly",
)  # fmt: skip
_ASIDES = (
    "bravely", "clearly", "cleverly", "foolishly", "greedily", "obviously", "predictably", "proudly", "sadly",
    "shamelessly", "wisely",
)  # fmt: skip
_SLANTED_VERBS = (
    Swap("bragged", "said", "stated"), Swap("claimed", "said", "stated"), Swap("confessed", "said", "stated"),
    Swap("insisted", "said", "stated"), Swap("whined", "said", "stated"),
)  # fmt: skip
_BODIES = ("board", "club", "company", "council", "governor", "mayor", "ministry", "union")
_PUBLIC_DEEDS = ("approved", "built", "closed", "designed", "moved", "opened", "planned", "renamed", "sold")
_PUBLIC_THINGS = ("canal", "dam", "factory", "library", "museum", "park", "stadium", "statue", "theatre", "tunnel")


def _removed(word: str) -> Swap:
    return Swap(word, "")


def neutralisation(rng: np.random.Generator) -> Edit:
    """Praise, blame and slant go: `The foolish mayor claimed that ...` -> `The mayor said that ...`"""
    body, thing = pick(rng, _BODIES), pick(rng, _PUBLIC_THINGS)
    first, second = (_removed(pick(rng, _PRAISE_OR_BLAME)) for _ in range(2))
    aside = _removed(pick(rng, _ASIDES))
    deed = pick(rng, _PUBLIC_DEEDS)
    if rng.random() < 0.5:
        first, aside, second = some(rng, [first, aside, second])
        when = pick(rng, PAST_TIMES)
        return edit("the", first, body, aside, deed, A, second, thing, _place(rng), when, ".")
    first, said, second = some(rng, [first, pick(rng, _SLANTED_VERBS), second])
    other = pick(rng, [name for name in _BODIES if name != body])
    return edit("the", first, body, said, "that the", other, deed, "the", second, thing, _place(rng), ".")


_GREETINGS = (Swap("hey", "hello", "dear"), Swap("hi", "hello", "dear"), Swap("yo", "hello", "dear"))
_FORMAL_WILL = (
    Swap("I can't", "I cannot"), Swap("I don't wanna", "I do not want to"), Swap("I gotta", "I have to", "I must"),
    Swap("I won't", "I will not"), Swap("I'm gonna", "I am going to", "I will"), Swap("I'll", "I will"),
    Swap("we can't", "we cannot"), Swap("we gotta", "we have to", "we must"), Swap("we won't", "we will not"),
    Swap("we're gonna", "we are going to", "we will"), Swap("we'll", "we will"),
)  # fmt: skip
_FORMAL_WHEN = (Swap("asap", "as soon as possible"), Swap("tmrw", "tomorrow"), Swap("right away", "immediately"))
_FORMAL_BECAUSE = (Swap("cuz", "because"), Swap("cos", "because"))
_FORMAL_PEOPLE = (
    Swap("the kids", "the children"), Swap("my folks", "my parents"), Swap("the boss", "the manager"),
    Swap("the guys", "the workers"),
)  # fmt: skip
_FORMAL_DID = (
    Swap("didn't like", "did not like"), Swap("couldn't find", "could not find"), Swap("messed up", "damaged"),
    Swap("freaked out about", "worried about"), Swap("checked out", "inspected"),
)  # fmt: skip
_FORMAL_ASK = (
    Swap("can u", "could you", "would you"), Swap("could ya", "could you", "would you"),
    Swap("pls", "please", "kindly"), Swap("lemme", "please let me"),
)  # fmt: skip


def formality(rng: np.random.Generator) -> Edit:
    """A quick note becomes a polite one: `Hey Tom, we can't paint the kite cuz ...` -> `Hello Tom, we cannot ...`"""
    hello, name = pick(rng, _GREETINGS), pick(rng, tuple(NAMES))
    verb, thing, other = pick(rng, VERBS).base, pick(rng, THINGS).singular, pick(rng, THINGS).plural
    if rng.random() < 0.6:
        tables = _FORMAL_WILL, _FORMAL_BECAUSE, _FORMAL_PEOPLE, _FORMAL_DID
        hello, will, because, they, did = some(rng, [hello, *(pick(rng, table) for table in tables)])
        return edit(hello, name, ",", will, verb, "the", thing, because, they, did, "the", _look(rng), other, ".")
    hello, ask, soon = some(rng, [hello, pick(rng, _FORMAL_ASK), pick(rng, _FORMAL_WHEN)])
    mark = "?" if ask.after == "could you" else "."
    return edit(hello, name, ",", ask, verb, "the", _look(rng), other, _place(rng), soon, mark)


KINDS: dict[str, Callable[[np.random.Generator], Edit]] = {
    "grammar": grammar,
    "simplification": simplification,
    "clarity": clarity,
    "coherence": coherence,
    "neutralisation": neutralisation,
    "formality": formality,
}

INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "grammar": (
        "Fix the grammar",
        "Correct the mistakes",
        "Make this grammatical",
        "Repair the errors in this sentence",
    ),
    "simplification": ("Simplify this sentence", "Say this in simple words", "Make this easier to read"),
    "clarity": ("Make this clearer", "Say this in fewer words", "Remove the wordy phrases"),
    "coherence": ("Join the two sentences", "Make this flow", "Connect these sentences into one"),
    "neutralisation": ("Make this neutral", "Remove the point of view", "Take the opinion out of this sentence"),
    "formality": ("Make this formal", "Write this politely", "Turn this note into formal English"),
}
