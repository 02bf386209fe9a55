"""The synthetic editing text: what it promises about flags, distances, words, and each kind of edit."""

from __future__ import annotations

import json
import re
from collections import Counter

import jax
import numpy as np
import pytest

from deft_tsds.metrics import METRICS
from deft_tsds.synthetic import FLAGS, INSTRUCTIONS, KINDS, OFF_TASK_NAME, Synthetic, make_editing, write_editing
from deft_tsds.synthetic.words import HABITS, PAST_TIMES, THINGS, VERBS

NUM_POOL, NUM_TEST, NUM_QUERIES = 1201, 40, 21

SLANG = {"asap", "boss", "cos", "cuz", "folks", "gonna", "gotta", "guys", "hey", "hi", "kids", "lemme", "pls",
         "tmrw", "u", "wanna", "ya", "yo"}  # fmt: skip
LOADED = {"amazing", "awful", "brilliant", "dreadful", "foolish", "glorious", "heroic", "legendary", "pathetic",
          "ridiculous", "shameful", "so-called", "stunning", "superb", "ugly", "bravely", "clearly", "cleverly",
          "foolishly", "greedily", "obviously", "predictably", "proudly", "sadly", "shamelessly", "wisely", "bragged",
          "claimed", "confessed", "insisted", "whined"}  # fmt: skip
LONG = {"acquired", "additional", "adjacent", "attorney", "beverages", "concealed", "discovered", "documents",
        "educator", "examined", "garments", "illustrations", "implements", "infant", "mariner", "monarch", "multitude",
        "numerous", "observed", "physician", "prior", "purchased", "rear", "repaired", "requested", "residences",
        "selected", "subsequent", "sufficient", "transported", "vehicles", "vessels", "vicinity",
        "vocalist"}  # fmt: skip
WORDY = ("the fact that", "in order to", "so as to", "with the aim", "each and every", "one single", "one and only",
         "in colour", "the decision", "an attempt", "a promise", "the ability", "in a position", "for the reason",
         "the time that", "the time when", "such time as")  # fmt: skip


@pytest.fixture(scope="module")
def made() -> Synthetic:
    return make_editing(NUM_POOL, NUM_TEST, NUM_QUERIES, key=jax.random.key(0))


def _split(text: str) -> list[str]:
    return re.findall(r"[a-z'-]+", text.lower())


def _of_kind(made: Synthetic, kind: str) -> list[tuple[str, list[str]]]:
    """(source, right answers) of all rows of a kind whose target is right."""
    rows = [row for row in made.pool + made.queries if row["task"] == kind and not row["wrong_target"]]
    pairs = [(row["input"], [row["target"]]) for row in rows]
    return pairs + [(row["input"], row["references"]) for row in made.tests[kind]]


def _differing_words(left: str, right: str) -> float:
    if len(_split(left)) != len(_split(right)):
        return np.inf
    return sum(one != other for one, other in zip(_split(left), _split(right), strict=True))


def test_same_key_same_bytes_and_another_key_other_rows(tmp_path) -> None:
    sizes = 60, 4, 6
    written = write_editing(tmp_path / "one", *sizes, key=jax.random.key(5))
    write_editing(tmp_path / "two", *sizes, key=jax.random.key(5))
    names = ["pool.jsonl", "queries.jsonl", *(f"tests/{kind}.jsonl" for kind in KINDS)]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*.jsonl")) == sorted(
        names
    )
    lines = (tmp_path / "one" / "pool.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == written.pool
    assert make_editing(*sizes, key=jax.random.key(6)).pool != written.pool


def test_shares_of_flags_are_exact_and_no_row_has_two(made) -> None:
    counts = Counter(flag for row in made.pool for flag in FLAGS if row[flag])
    # 1201 * (.6, .15, .1, .15) = 720.6, 180.15, 120.1, 180.15: the one left over goes to the clean rows.
    assert counts == {"near_duplicate": 180, "wrong_target": 120, "off_task": 180}
    assert max(sum(row[flag] for flag in FLAGS) for row in made.pool) == 1
    assert len(made.pool) == NUM_POOL
    clean = Counter(row["task"] for row in made.pool if not any(row[flag] for flag in FLAGS))
    assert clean.keys() == KINDS.keys()
    assert max(clean.values()) - min(clean.values()) <= 1
    assert all(row["off_task"] == (row["task"] == OFF_TASK_NAME) for row in made.pool)


def test_tests_and_queries_have_no_defect_and_the_sizes_asked_for(made) -> None:
    assert {kind: len(rows) for kind, rows in made.tests.items()} == dict.fromkeys(KINDS, NUM_TEST)
    assert Counter(row["task"] for row in made.queries) == dict(zip(KINDS, (4, 4, 4, 3, 3, 3), strict=True))
    for row in made.queries + [row for rows in made.tests.values() for row in rows]:
        assert not any(row[flag] for flag in FLAGS)
    assert {len(row["references"]) for rows in made.tests.values() for row in rows} == {1, 2}


def test_rows_are_plain_and_complete(made) -> None:
    rows = made.pool + made.queries + [row for tests in made.tests.values() for row in tests]
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        answers = row.get("references") or [row["target"]]
        assert list(row) == [
            "id",
            "task",
            "instruction",
            "input",
            "references" if "references" in row else "target",
            *FLAGS,
        ]
        for text in (row["instruction"], row["input"], *answers):
            assert text == " ".join(text.split())
            assert text
    for kind in KINDS:
        assert {row["instruction"] for row in rows if row["task"] == kind} == set(INSTRUCTIONS[kind])


def test_nothing_repeats_by_accident(made) -> None:
    rows = made.pool + made.queries + [row for tests in made.tests.values() for row in tests]
    assert len({row["input"] for row in rows}) == len(rows)
    # The naive check of all pairs of unflagged rows, by kind and length.
    texts = [row["input"] for row in rows if not row["near_duplicate"]][:700]
    closest = min(_differing_words(left, right) for i, left in enumerate(texts) for right in texts[:i])
    assert closest >= 2


def test_no_near_duplicate_of_a_test_or_query_is_in_the_pool(made) -> None:
    held_out = made.queries + [row for tests in made.tests.values() for row in tests]
    copies = [row for row in made.pool if row["near_duplicate"]]
    for row in copies:
        assert min(_differing_words(row["input"], other["input"]) for other in held_out) >= 2


def test_each_near_duplicate_has_an_original_one_word_away_and_comes_in_a_family(made) -> None:
    clean = [row for row in made.pool if not any(row[flag] for flag in FLAGS)]
    families: Counter[str] = Counter()
    for row in made.pool:
        if row["near_duplicate"]:
            originals = [other for other in clean if _differing_words(row["input"], other["input"]) <= 1]
            assert originals
            assert any(_differing_words(row["target"], other["target"]) <= 1 for other in originals)
            families[originals[0]["id"]] += 1
    assert np.mean(list(families.values())) > 2.5


def test_wrong_targets_are_wrong_in_three_ways(made) -> None:
    ways: Counter[str] = Counter()
    for row in made.pool:
        if row["wrong_target"]:
            if row["target"] == row["input"]:
                ways["unedited"] += 1
            elif _shared(row) > 0.6:
                ways["corrupted"] += 1
            else:
                ways["misaligned"] += 1
    assert min(ways.values()) > 20
    assert ways.total() == 120


def _shared(row: dict) -> float:
    """Share of the target's words that the input has too."""
    source, target = set(_split(row["input"])), set(_split(row["target"]))
    return len(source & target) / len(target)


def test_the_vocabulary_is_small_and_the_sentences_short(made) -> None:
    vocabulary: set[str] = set()
    lengths = []
    for row in made.pool:
        vocabulary |= set(re.findall(r"[A-Za-z'-]+", " ".join((row["instruction"], row["input"], row["target"]))))
        if not row["off_task"]:
            lengths.append(len(row["input"].split()))
    assert 450 < len(vocabulary) < 900
    assert min(lengths) >= 7
    assert max(lengths) <= 20
    assert 10 < np.mean(lengths) < 14


def test_grammar_targets_agree_in_number_and_tense(made) -> None:
    plurals, singulars = {noun.plural for noun in THINGS}, {noun.singular for noun in THINGS}
    by_form = {form: verb for verb in VERBS for form in verb}
    for source, answers in _of_kind(made, "grammar"):
        assert source not in answers
        for target in answers:
            text = target.lower()
            *_, subject, verb = text.split()[: next(i for i, w in enumerate(text.split()) if w in by_form) + 1]
            forms = by_form[verb]
            if any(text.startswith(time) for time in PAST_TIMES):
                assert verb == forms.past
            else:
                assert any(text.startswith(time) for time in HABITS)
                assert verb == (forms.base if subject.endswith("s") else forms.singular)
            for article, following in re.findall(r"\b(an?) (\w)", text):
                assert (article == "an") == (following in "aeiou")
            (thing,) = (word for word in _split(text) if word in plurals | singulars)
            determiner = re.search(r"\b(an?|the|this)\b(?: \w+)? " + thing, text)
            assert (thing in singulars) == bool(determiner)


def test_simple_targets_have_no_long_word_and_no_side_remark(made) -> None:
    for source, answers in _of_kind(made, "simplification"):
        assert set(_split(source)) & LONG or ", who" in source
        for target in answers:
            assert not set(_split(target)) & LONG
            assert ", who" not in target
        assert len(answers[0].split()) <= len(source.split()) + 1  # "requested" becomes "asked for"


def test_clear_targets_are_shorter_and_have_no_wordy_phrase(made) -> None:
    for source, answers in _of_kind(made, "clarity"):
        for target in answers:
            assert len(target.split()) < len(source.split())
            assert not any(phrase in target for phrase in WORDY)
        assert any(phrase in source for phrase in WORDY)


def test_coherent_targets_are_one_sentence_with_the_words_of_two(made) -> None:
    for source, answers in _of_kind(made, "coherence"):
        assert len(re.findall(r"[.!]( |$)", source)) == 2
        for target in answers:
            assert len(re.findall(r"[.!]( |$)", target)) == 1
            joints = {"a", "although", "an", "as", "and", "because", "but", "he", "she", "so", "then", "they"}
            assert set(_split(target)) - set(_split(source)) <= joints


def test_neutral_targets_have_no_loaded_word_and_keep_the_rest(made) -> None:
    for source, answers in _of_kind(made, "neutralisation"):
        assert set(_split(source)) & LOADED
        for target in answers:
            assert not set(_split(target)) & LOADED
            assert set(_split(target)) - set(_split(source)) <= {"a", "an", "said", "stated"}


def test_formal_targets_have_no_contraction_and_no_slang(made) -> None:
    for source, answers in _of_kind(made, "formality"):
        assert source not in answers
        for target in answers:
            assert "'" not in target
            assert not set(_split(target)) & SLANG


def test_off_task_answers_are_right(made) -> None:
    seen: Counter[str] = Counter()
    numbers = "zero one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
    lexicon: dict[str, str] = {}
    for row in made.pool:
        source, target = row["input"], row["target"]
        if not row["off_task"]:
            continue
        if row["instruction"].startswith("Sort"):
            assert target.split(", ") == sorted(source.split(", "))
            seen["sorting"] += 1
        elif row["instruction"].startswith("How many"):
            assert target == numbers[sum(numbers.index(word) for word in _split(source) if word in numbers)]
            seen["sums"] += 1
        elif row["instruction"].startswith("Answer"):
            facts = dict(re.findall(r"(\w+) has an? (\w+)", source))
            assert source.endswith(f"Who has the {facts[target]}?")
            seen["questions"] += 1
        else:
            for word, secret in zip(source.split(), target.split(), strict=True):
                assert lexicon.setdefault(word, secret) == secret
            seen["code"] += 1
    assert set(seen.values()) == {45}


def test_copying_scores_low_and_the_right_answer_high_in_sari(made, capsys) -> None:
    lines = []
    for kind, rows in made.tests.items():
        sources, references = [row["input"] for row in rows], [row["references"] for row in rows]
        copy = METRICS["sari"](sources, sources, references)
        right = METRICS["sari"]([answers[0] for answers in references], sources, references)
        lines.append(f"{kind:16s} copy {copy:5.1f}  right {right:5.1f}")
        assert copy < 30
        assert right > 80
        assert METRICS["exact_match"](sources, sources, references) == 0
    with capsys.disabled():
        print("\nSARI of the synthetic test sets\n" + "\n".join(lines))


def test_each_kind_has_tens_of_thousands_of_sentences() -> None:
    for kind, make in KINDS.items():
        rng = np.random.default_rng(0)
        drawn = Counter(make(rng).source for _ in range(3000))
        # Birthday bound: n draws of s equally likely sentences collide n^2 / 2s times.
        collisions = drawn.total() - len(drawn)
        assert collisions < 3000**2 / 2 / 30_000, kind


def test_queries_may_be_of_chosen_kinds() -> None:
    made = make_editing(30, 1, 7, key=jax.random.key(0), query_kinds=("clarity", "formality"))
    assert Counter(row["task"] for row in made.queries) == {"clarity": 4, "formality": 3}


def test_a_pool_without_defects() -> None:
    made = make_editing(12, 1, 1, key=jax.random.key(0), near_duplicates=0, wrong_targets=0, off_task=0)
    assert Counter(row["task"] for row in made.pool) == dict.fromkeys(KINDS, 2)
    assert not any(row[flag] for row in made.pool for flag in FLAGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_pool": 0}, "num_pool is 0"),
        ({"num_test": 0}, "num_test is 0"),
        ({"off_task": -0.1}, "off_task is -0.1"),
        ({"wrong_targets": float("nan")}, "wrong_targets is nan"),
        ({"near_duplicates": 0.8}, "sum to 1 or more"),
        ({"query_kinds": ("poetry",)}, r"query_kinds is \('poetry',\): give at least one of grammar"),
        ({"query_kinds": ()}, "give at least one of grammar"),
        ({"near_duplicates": 0.7, "num_pool": 10}, "only 0 near-duplicates, 1 are asked for"),
    ],
)
def test_bad_settings_are_errors(settings, message) -> None:
    sizes = {"num_pool": 12, "num_test": 1, "num_queries": 1} | settings
    with pytest.raises(ValueError, match=message):
        make_editing(**sizes, key=jax.random.key(0))
