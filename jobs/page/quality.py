"""Quality scores of a text, and the decision by a recipe's thresholds.

Definitions: Gopher (Rae et al. 2021, appendix A1), C4 (Raffel et al. 2020, section 2.2), FineWeb (Penedo et al. 2024,
section 3.6), each as datatrove computes it where a paper leaves it open.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from jobs.page.words import words as split
from pipeline.recipe import C4Lines, Filter

Numbers = npt.NDArray[np.int64]

TERMINAL = (".", "!", "?", '"', "'", "”", "’", "。", "！", "？", "…")  # ends of a sentence or of a quotation
TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)
SHORT_LINE_CHARS = (10, 20, 30, 40, 50, 60)  # the limits for which a column is kept

_PARAGRAPHS = re.compile(r"\n{2,}")
_LINE_BREAKS = re.compile(r"\n+")
# Between two sentences of a line. A run of marks is matched once, from its start and possessively: with backtracking,
# "....x" would cost the square of its length.
_SENTENCE_END = re.compile(r"(?<![.!?。！？])[.!?。！？]++[\"'”’)\]]*+(?=\s+\S)")
# C4's rules on lines (section 2.2 and its code): Wikipedia's marks, which are removed, and strings that drop a line.
_CITATIONS = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_C4_TERMINAL = (".", "?", "!", '"', "'")

# Columns of `scores` and their types, for the artifact's schema.
INTEGERS = ("words", "stop_words", "sentences")
FRACTIONS = (
    "mean_word_length",
    "symbol_word_ratio",
    "bullet_lines",
    "ellipsis_lines",
    "alpha_words",
    "alpha_words_without_marks",
    "duplicate_lines",
    "duplicate_line_chars",
    "c4_duplicate_line_chars",
    "duplicate_paragraphs",
    "duplicate_paragraph_chars",
    *(f"top_{n}gram_chars" for n in TOP_NGRAMS),
    *(f"duplicate_{n}gram_chars" for n in DUPLICATE_NGRAMS),
    "line_punctuation",
    *(f"short_lines_{n}" for n in SHORT_LINE_CHARS),
    "newline_word_ratio",
)
FLAGS = ("lorem_ipsum", "curly_brace")
COLUMNS = (*INTEGERS, *FRACTIONS, *FLAGS)


def scores(text: str, words: Sequence[str], stop_words: Collection[str], c4: C4Lines) -> dict[str, Any]:
    """All scores of a text, by name of column. Shares are from 0 to 1 for any input.

    `mean_word_length` is in characters, and `symbol_word_ratio` may exceed 1: `#a#b` has two signs in one word.

    `words`: of `jobs.page.words`, punctuation marks included. `stop_words`: those of its language. `c4`: which lines
    the scores of C4 and FineWeb read.
    """
    chars = max(1, len(text))
    counts = Counter(words)
    real = {word: n for word, n in counts.items() if word.isalnum() or any(map(str.isalnum, word))}
    alpha = sum(n for word, n in real.items() if word.isalpha() or any(map(str.isalpha, word)))
    lines = [line for line in text.split("\n") if line.strip()]
    stripped = [line for line in map(str.strip, text.splitlines()) if line]
    long = [line for line in stripped if _long(line, c4)]
    unscripted = [line for line in long if not (c4.drop_javascript and "javascript" in line.lower())]
    left = [line for line in (_c4_line(line, c4) for line in unscripted) if line]
    paragraphs = [part for part in _PARAGRAPHS.split(text.strip()) if part]
    real_words = sum(real.values())
    row: dict[str, Any] = {
        "words": real_words,
        "stop_words": len(set(stop_words).intersection(map(str.lower, real))),
        "sentences": sum(1 + len(_SENTENCE_END.findall(line)) for line in left),
        "mean_word_length": sum(n * len(word) for word, n in real.items()) / max(1, real_words),
        "symbol_word_ratio": max(text.count("#"), text.count("...") + text.count("…")) / max(1, len(words)),
        "bullet_lines": _share(lines, lambda line: line.lstrip().startswith(("•", "-", "*"))),
        "ellipsis_lines": _share(lines, lambda line: line.rstrip().endswith(("...", "…"))),
        "alpha_words": alpha / max(1, len(words)),
        "alpha_words_without_marks": alpha / max(1, real_words),
        # FineWeb's rules read the lines that C4's leave.
        "line_punctuation": _share(left, lambda line: line.endswith(TERMINAL)),
        "newline_word_ratio": min(1.0, max(0, len(left) - 1) / max(1, _words_of(left, stripped, words))),
        "c4_duplicate_line_chars": _duplicates(left)[1] / max(1, sum(map(len, left))),
        "lorem_ipsum": any("lorem ipsum" in line.lower() for line in long),
        "curly_brace": any("{" in line for line in unscripted),
    }
    for limit in SHORT_LINE_CHARS:
        row[f"short_lines_{limit}"] = _share(left, lambda line, limit=limit: len(line) <= limit)
    for name, parts in (("line", _LINE_BREAKS.split(text.strip("\n"))), ("paragraph", paragraphs)):
        again, repeated = _duplicates(parts)
        row[f"duplicate_{name}s"] = again / max(1, len(parts))
        row[f"duplicate_{name}_chars"] = min(1.0, repeated / chars)
    ends = np.cumsum([0, *map(len, words)])
    for n, at, grams in _repeated(words, counts, max(DUPLICATE_NGRAMS)):
        covered = ends[at + n] - ends[at]
        if n in TOP_NGRAMS:
            row[f"top_{n}gram_chars"] = min(1.0, _top_ngram(at, grams, covered) / chars)
        if n in DUPLICATE_NGRAMS:
            row[f"duplicate_{n}gram_chars"] = min(1.0, _repeated_ngrams(at, grams, covered, n) / chars)
    return row


class Check(NamedTuple):
    """One rule of a recipe applied to a text: `value` of the column `score` must be in `relation` to `limit`.

    `reason`: that of a document for which it is `broken`.
    """

    reason: str
    score: str
    value: Any
    relation: str
    limit: Any
    broken: bool


def checks(row: Mapping[str, Any], recipe: Filter) -> Iterator[Check]:
    """The rules for a row of scores, in order; by its `language`, whose probability is `language_score`."""
    recipe = recipe.for_language.get(row["language"], recipe)
    gopher, c4, fineweb = recipe.gopher, recipe.c4, recipe.fineweb

    def least(reason: str, score: str, limit: float) -> Check:
        return Check(reason, score, row[score], "at least", limit, row[score] < limit)

    def most(reason: str, score: str, limit: float) -> Check:
        return Check(reason, score, row[score], "at most", limit, row[score] > limit)

    def by_n(limits: Mapping[Any, float], n: int) -> float | None:
        return limits.get(str(n))

    def absent(reason: str, score: str) -> Check:
        return Check(reason, score, row[score], "must be", False, bool(row[score]))

    known = row["language"] in recipe.languages
    yield Check("other_language", "language", row["language"], "one of", ", ".join(recipe.languages), not known)
    if known:
        yield least("other_language", "language_score", recipe.languages[row["language"]])
    if (wanted := recipe.licenses) is not None:
        fits = any(fnmatchcase(row.get("license") or "", pattern) for pattern in wanted)
        yield Check("other_license", "license", row.get("license"), "one of", ", ".join(wanted), not fits)
    if recipe.min_quality is not None:
        yield least("low_quality", "quality", recipe.min_quality)
    yield least("gopher_too_short", "words", gopher.min_words)
    yield most("gopher_too_long", "words", gopher.max_words)
    yield least("gopher_short_words", "mean_word_length", gopher.min_mean_word_length)
    yield most("gopher_long_words", "mean_word_length", gopher.max_mean_word_length)
    yield most("gopher_symbols", "symbol_word_ratio", gopher.max_symbol_word_ratio)
    yield most("gopher_bullets", "bullet_lines", gopher.max_bullet_lines)
    yield most("gopher_ellipses", "ellipsis_lines", gopher.max_ellipsis_lines)
    alpha_words = "alpha_words" if gopher.marks_are_words else "alpha_words_without_marks"
    yield least("gopher_few_letters", alpha_words, gopher.min_alpha_words)
    yield least("gopher_stop_words", "stop_words", gopher.min_stop_words)
    yield most("gopher_duplicate_lines", "duplicate_lines", gopher.max_duplicate_lines)
    yield most("gopher_duplicate_line_chars", "duplicate_line_chars", gopher.max_duplicate_line_chars)
    yield most("gopher_duplicate_paragraphs", "duplicate_paragraphs", gopher.max_duplicate_paragraphs)
    yield most("gopher_duplicate_paragraph_chars", "duplicate_paragraph_chars", gopher.max_duplicate_paragraph_chars)
    # Not in the order of the recipe's keys, which is no part of a fingerprint: the first broken rule is the reason.
    for n in TOP_NGRAMS:
        if (limit := by_n(gopher.max_top_ngram_chars, n)) is not None:
            yield most(f"gopher_top_{n}gram", f"top_{n}gram_chars", limit)
    for n in DUPLICATE_NGRAMS:
        if (limit := by_n(gopher.max_duplicate_ngram_chars, n)) is not None:
            yield most(f"gopher_duplicate_{n}grams", f"duplicate_{n}gram_chars", limit)
    yield least("c4_few_sentences", "sentences", c4.min_sentences)
    if c4.drop_lorem_ipsum:
        yield absent("c4_lorem_ipsum", "lorem_ipsum")
    if c4.drop_curly_brace:
        yield absent("c4_curly_brace", "curly_brace")
    yield least("fineweb_line_punctuation", "line_punctuation", fineweb.min_line_punctuation)
    yield most("fineweb_short_lines", f"short_lines_{fineweb.short_line_chars}", fineweb.max_short_lines)
    yield most("fineweb_duplicate_line_chars", "c4_duplicate_line_chars", fineweb.max_duplicate_line_chars)
    yield most("fineweb_newlines", "newline_word_ratio", fineweb.max_newline_word_ratio)


def decide(row: Mapping[str, Any], recipe: Filter) -> str | None:
    """The reason of the first rule that a row breaks, or None where the document is kept."""
    return next((check.reason for check in checks(row, recipe) if check.broken), None)


def _long(line: str, c4: C4Lines) -> bool:
    """Whether C4 keeps a line by the number and length of its words, and by its end."""
    line_words = line.split()
    if len(line_words) < c4.min_words or max(map(len, line_words), default=0) > c4.max_word_chars:
        return False
    plain = _CITATIONS.sub("", line) if c4.remove_citations else line
    return not c4.require_punctuation or (plain.endswith(_C4_TERMINAL) and not plain.endswith("..."))


def _c4_line(line: str, c4: C4Lines) -> str | None:
    """The line without citations; None where it is on cookies, privacy or terms of use."""
    line = _CITATIONS.sub("", line) if c4.remove_citations else line
    if not c4.drop_policies:
        return line
    small = line.lower()
    return None if any(policy in small for policy in _POLICIES) else line


def _words_of(left: Sequence[str], all_lines: Sequence[str], words: Sequence[str]) -> int:
    """Number of words in the lines `left`, of a text whose `words` and lines are known.

    No word crosses the end of a line, so only the lines that C4 changed or removed are split again.
    """
    gained, lost = Counter(left), Counter(all_lines)
    changed = sum(n * len(split(line)) for line, n in (gained - lost).items())
    return len(words) + changed - sum(n * len(split(line)) for line, n in (lost - gained).items())


def _share(parts: Sequence[str], holds: Any) -> float:
    return sum(map(bool, map(holds, parts))) / max(1, len(parts))


def _duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts repeat an earlier one, and their characters."""
    seen: set[str] = set()
    again = chars = 0
    for part in parts:
        if part in seen:
            again, chars = again + 1, chars + len(part)
        else:
            seen.add(part)
    return again, chars


def _repeated(words: Sequence[str], known: Collection[str], longest: int) -> Iterator[tuple[int, Numbers, Numbers]]:
    """For n = 2…longest: (n, positions of the n-grams that occur more than once, a number for each different one).

    `known`: the different words. An n-gram that repeats begins with an (n-1)-gram that does, so that each step only
    looks at the positions that the last one left: few after some steps.
    """
    numbers = {word: number for number, word in enumerate(known)}
    ids = np.fromiter(map(numbers.__getitem__, words), np.int64, len(words))
    at, grams = np.arange(len(ids)), ids
    # An n-gram is identified by the number of its first n - 1 words and the id of its last one.
    for n in range(2, longest + 1):
        fits = at + n <= len(ids)
        at, grams = at[fits], grams[fits]
        _, grams, counts = np.unique(grams * len(known) + ids[at + n - 1], return_inverse=True, return_counts=True)
        again = counts[grams] > 1
        at, grams = at[again], grams[again]
        yield n, at, grams


def _top_ngram(at: Numbers, grams: Numbers, chars: Numbers) -> int:
    """Characters covered by all occurrences of the most frequent n-gram, of several the longest; 0 where none repeats.

    `chars`: characters of the n-gram at each position of `at`.
    """
    if not len(at):
        return 0
    counts = np.bincount(grams)
    most = counts.max()
    return int(chars[counts[grams] == most].max() * most)


def _repeated_ngrams(at: Numbers, grams: Numbers, chars: Numbers, n: int) -> int:
    """Characters of n-grams that repeat an earlier one, counted from left to right without overlap."""
    seen: set[int] = set()
    total = free = 0
    for place, gram, size in zip(at.tolist(), grams.tolist(), chars.tolist(), strict=True):
        if place < free:
            continue
        if gram in seen:
            total += size
            free = place + n
        else:
            seen.add(gram)
    return total
