"""Quality scores: their definitions, their bounds on any text, and the rule that each broken limit names."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.page import quality
from jobs.page.words import words
from pipeline.recipe import load
from tests.jobs.support import PROSE

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"
STOP_WORDS = load(DEMO).extract.languages["en"]
C4_LINES = load(DEMO).extract.c4_lines


@settings(deadline=None)
@given(st.one_of(st.text(max_size=1500), st.text("ab.!?\n -#{…•", max_size=1500)))
def test_scores_of_any_text_are_finite_and_fractions_fractions(text: str) -> None:
    found = quality.scores(text, words(text), STOP_WORDS, C4_LINES)
    assert set(found) == {*quality.INTEGERS, *quality.FRACTIONS, *quality.FLAGS}
    for name in quality.FRACTIONS:
        assert math.isfinite(found[name]) and found[name] >= 0
        if "ratio" not in name and name != "mean_word_length":
            assert found[name] <= 1
    quality.decide(found | {"language": "en", "language_score": 1.0}, load(DEMO).filter)


def test_prose_passes_and_each_rule_names_what_it_drops() -> None:
    recipe = load(DEMO).filter

    def decided(text: str, english: float = 0.99) -> str | None:
        found = quality.scores(text, words(text), STOP_WORDS, C4_LINES)
        return quality.decide(found | {"language": "en", "language_score": english}, recipe)

    assert decided(PROSE) is None
    assert decided(PROSE, english=0.64) == "other_language"
    assert decided("Too short.") == "gopher_too_short"
    assert decided("\n".join([PROSE] * 5)) == "gopher_duplicate_lines"
    assert decided("\n".join(f"- {line}" for line in PROSE.split(". "))) == "gopher_bullets"
    assert decided(PROSE + " lorem ipsum dolor.") == "c4_lorem_ipsum"
    assert decided(" ".join(f"{i}" for i in range(200))) == "gopher_short_words"
    assert "gram" in str(decided(PROSE + " I say it all again now" * 20))


def test_marks_count_as_words_or_not() -> None:
    """Prose with many marks is dropped by datatrove's reading of Gopher's rule, and not by the paper's."""
    recipe, text = load(DEMO).filter, PROSE.replace(" ", ", ")
    row = quality.scores(text, words(text), STOP_WORDS, C4_LINES) | {"language": "en", "language_score": 1.0}
    assert row["alpha_words"] < recipe.gopher.min_alpha_words < row["alpha_words_without_marks"]
    gopher = recipe.gopher.model_copy(update={"marks_are_words": False})
    reasons = [quality.decide(row, recipe), quality.decide(row, recipe.model_copy(update={"gopher": gopher}))]
    assert reasons[0] == "gopher_few_letters" != reasons[1]


@pytest.mark.parametrize(
    ("licenses", "declared", "reason"),
    [
        (None, None, None),
        (["cc-by-[0-9]*"], "cc-by-4.0", None),
        (["cc-by-[0-9]*", "cc0-*"], "cc-by-sa-4.0", "other_license"),
        (["cc0-*"], None, "other_license"),
        (["https://x.test/*"], "https://x.test/terms", None),
    ],
)
def test_only_pages_of_some_licenses(licenses: list[str] | None, declared: str | None, reason: str | None) -> None:
    recipe = load(DEMO).filter.model_copy(update={"licenses": licenses})
    row = quality.scores(PROSE, words(PROSE), STOP_WORDS, C4_LINES) | {"language": "en", "language_score": 1.0}
    assert quality.decide(row | {"license": declared}, recipe) == reason


def test_counts_of_a_small_text_are_those_by_hand() -> None:
    text = "one two six. Ten.\none two six. Ten.\n\nx"
    found = quality.scores(text, words(text), STOP_WORDS, C4_LINES)
    assert (found["words"], found["sentences"], found["stop_words"]) == (9, 4, 0)
    assert found["duplicate_lines"] == pytest.approx(1 / 3)
    assert found["duplicate_line_chars"] == pytest.approx(17 / 38)
    # C4 drops the line of one word, and FineWeb's rules read what is left.
    assert found["c4_duplicate_line_chars"] == pytest.approx(17 / 34)
    assert found["line_punctuation"] == 1
    assert found["newline_word_ratio"] == pytest.approx(1 / 12)


def test_repetition_is_found() -> None:
    recipe, line = load(DEMO).filter, "This is the same sentence again and again.\n"
    found = quality.scores(line * 20, words(line * 20), STOP_WORDS, C4_LINES)
    assert found["duplicate_lines"] == pytest.approx(19 / 20)
    assert found["duplicate_5gram_chars"] > 0.5
    assert quality.decide(found | {"language": "en", "language_score": 1.0}, recipe) == "gopher_duplicate_lines"
    assert quality.decide(found | {"language": "en", "language_score": 0.64}, recipe) == "other_language"


@pytest.mark.parametrize(
    ("rule", "value", "line"),
    [
        ("min_words", 1, "Read on."),
        ("max_word_chars", 2000, f"See the {'x' * 1500} here."),
        ("remove_citations", False, "He was there[1] in May.[2]"),
        ("drop_javascript", False, "Turn on Javascript for this."),
        ("drop_policies", False, "Read our privacy policy first."),
        ("require_punctuation", True, "Of no mark at its end"),
        ("require_punctuation", True, "Of dots at its end..."),
    ],
)
def test_each_rule_on_lines_of_c4_can_be_switched(rule: str, value: object, line: str) -> None:
    """A line that a rule takes out or changes is one for the scores where the rule is off."""
    text = f"{line}\nA line that always counts."
    on, off = (
        quality.scores(text, words(text), STOP_WORDS, C4_LINES.model_copy(update=to)) for to in ({}, {rule: value})
    )
    differs = {name for name in on if on[name] != off[name]}
    assert differs and differs <= {
        "sentences", "line_punctuation", "newline_word_ratio", "c4_duplicate_line_chars",
        *(f"short_lines_{n}" for n in quality.SHORT_LINE_CHARS),
    }  # fmt: skip


def test_a_language_has_its_own_limits_and_the_others_those_of_all() -> None:
    found = quality.scores(PROSE, words(PROSE), STOP_WORDS, C4_LINES) | {"language_score": 0.99}
    given = {"filter.languages": {"en": 0.65, "de": 0.65}, "extract.languages": {"en": STOP_WORDS, "de": []}}
    recipe = load(
        DEMO, given | {"filter.by_language": {"de": {"gopher": {"min_stop_words": 9, "min_words": 0}}}}
    ).filter
    assert quality.decide(found | {"language": "en"}, recipe) is None
    assert quality.decide(found | {"language": "de"}, recipe) == "gopher_stop_words"
    short = {"words": 3}
    assert quality.decide(found | {"language": "en"} | short, recipe) == "gopher_too_short"
    assert quality.decide(found | {"language": "de"} | short, recipe) == "gopher_stop_words"
    assert quality.decide(found | {"language": "fr"}, recipe) == "other_language"


def top_ngram(found: list[str], n: int) -> int:
    """Plainly: characters of the longest of the most frequent n-grams, times its count; 0 where none repeats."""
    counts = Counter(zip(*(found[i:] for i in range(n)), strict=False))
    most = max(counts.values(), default=1)
    return 0 if most == 1 else max(sum(map(len, gram)) for gram, count in counts.items() if count == most) * most


def repeated_ngrams(found: list[str], n: int) -> int:
    """Plainly: characters of n-grams that were there before, from left to right without overlap."""
    seen: set[tuple[str, ...]] = set()
    chars = at = 0
    while at + n <= len(found):
        gram = tuple(found[at : at + n])
        chars += sum(map(len, gram)) if gram in seen else 0
        at += n if gram in seen else 1
        seen.add(gram)
    return chars


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "c", ".", "ddd"]), max_size=80).map(" ".join), st.integers(1, 3))
def test_repetitions_are_those_of_the_plain_definition(text: str, times: int) -> None:
    text = " ".join([text] * times)
    found, row = words(text), quality.scores(text, words(text), ["the"], C4_LINES)
    for n in quality.TOP_NGRAMS:
        assert row[f"top_{n}gram_chars"] == min(1.0, top_ngram(found, n) / max(1, len(text)))
    for n in quality.DUPLICATE_NGRAMS:
        assert row[f"duplicate_{n}gram_chars"] == min(1.0, repeated_ngrams(found, n) / max(1, len(text)))


LINES = ["Hello there.", "We use cookies here, friend.", "As seen[3] in town[edit]", "no", "a b c d", "[1] b c", ""]


@given(st.lists(st.sampled_from(LINES) | st.text(max_size=12), max_size=12).map("\n".join))
def test_words_are_counted_of_the_lines_that_are_left(text: str) -> None:
    unscripted = [line for line in map(str.strip, text.splitlines()) if quality._long(line, C4_LINES)]
    left = [quality._c4_line(line, C4_LINES) for line in unscripted if "javascript" not in line.lower()]
    left = [line for line in left if line]
    row = quality.scores(text, words(text), ["the"], C4_LINES)
    assert row["newline_word_ratio"] == min(1.0, max(0, len(left) - 1) / max(1, sum(len(words(line)) for line in left)))


def test_the_order_of_a_recipes_keys_does_not_decide_the_reason() -> None:
    """It is no part of a fingerprint."""
    recipe = load(DEMO, {"filter.gopher.max_top_ngram_chars": {"4": 0.0, "2": 0.0}}).filter
    row = dict.fromkeys(quality.COLUMNS, 0.5) | {"language": "en", "language_score": 1.0}
    reasons = [check.reason for check in quality.checks(row, recipe)]
    assert [reason for reason in reasons if "_top_" in reason] == ["gopher_top_2gram", "gopher_top_4gram"]
