"""Signatures estimate Jaccard similarity, and depend on the set of n-grams and the seed alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.copies import minhash

MANY = minhash.permutations(2048, 1)
FUNCTIONS = minhash.permutations(112, 1)
WORDS = st.lists(
    st.sampled_from(["the", "a", "of", "to", "in", "is", "and", "code", "page", "word", "file", "run"]), max_size=40
)


@pytest.mark.parametrize("shared", [0, 50, 150, 250, 290, 300])
def test_the_estimate_is_close_to_jaccard(shared: int) -> None:
    """Of 2048 functions: the standard error is below 0.012, so 0.05 is four of them."""
    left = [str(i) for i in range(300)]
    right = left[:shared] + [f"other {i}" for i in range(300 - shared)]
    a, b = (minhash.shortened(minhash.signature(words, 1, MANY)) for words in (left, right))
    found = minhash.similarities(a + b, b + b, 2)
    assert found[0] == pytest.approx(shared / (600 - shared), abs=0.05)
    assert found[1] == 1.0


JACCARDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95)
SURE = 0.99  # that all of them hold the curve: each may miss it with a chance of (1 - SURE) / 7 (Bonferroni)


def tails(found: int, pairs: int, chance: float) -> tuple[float, float]:
    """How likely so few of the pairs are found, or so many, where each is with this chance."""

    def of(count: int) -> float:
        ways = math.lgamma(pairs + 1) - math.lgamma(count + 1) - math.lgamma(pairs - count + 1)
        return math.exp(ways + count * math.log(chance) + (pairs - count) * math.log1p(-chance))

    return sum(map(of, range(found + 1))), sum(map(of, range(found, pairs + 1)))


@pytest.mark.parametrize("jaccard", JACCARDS)
def test_recall_lies_on_the_curve_of_lsh(jaccard: float) -> None:
    """Pairs of sets of this similarity share a bucket as often as 1 - (1 - J^rows)^bands says.

    That is in the exact interval (Clopper & Pearson 1934) around what was found, at 99 % for all seven together. Sets
    and hash functions are fixed.
    """
    pairs, size, bands, rows = 1000, 400, 14, 8
    shared = round(2 * size * jaccard / (1 + jaccard))
    jaccard = shared / (2 * size - shared)
    found = 0
    for pair in range(pairs):
        common = [f"{pair} {i}" for i in range(shared)]
        sides = [common + [f"{pair} {side} {i}" for i in range(size - shared)] for side in "ab"]
        left, right = (minhash.band_hashes(minhash.signature(side, 1, FUNCTIONS), bands) for side in sides)
        found += any(a == b for a, b in zip(left, right, strict=True))
    expected = 1 - (1 - jaccard**rows) ** bands
    assert min(tails(found, pairs, expected)) >= (1 - SURE) / len(JACCARDS) / 2, f"{found / pairs} not {expected:.4f}"


def test_five_points_of_recall_off_the_curve_are_seen() -> None:
    """At J = 0.7 the curve is at 0.5647: of 1,000 pairs 515 to 614 can be found, no fewer and no more."""
    least = (1 - SURE) / len(JACCARDS) / 2
    can = [min(tails(found, 1000, 0.5647)) >= least for found in (514, 515, 565, 614, 615)]
    assert can == [False, True, True, True, False]


def test_each_function_is_as_likely_to_be_smallest_anywhere() -> None:
    """Over many texts each n-gram is the smallest equally often: without this the estimate has a bias."""
    grams = [str(i) for i in range(10)]
    values = np.array([minhash.signature([gram], 1, MANY) for gram in grams])
    counts = np.bincount(values.argmin(axis=0), minlength=10)
    assert counts.min() > 204.8 - 5 * 13.6  # binomial(2048, 0.1): mean 204.8, sigma 13.6
    assert counts.max() < 204.8 + 5 * 13.6


@settings(deadline=None)
@given(words=WORDS, n=st.integers(1, 6))
def test_the_set_of_ngrams_decides(words: list[str], n: int) -> None:
    values = minhash.signature(words, n, FUNCTIONS)
    assert values.shape == (112,)
    assert values.dtype == np.uint64
    if len(words) >= n:
        grams = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
        single = [minhash.signature(list(gram), n, FUNCTIONS) for gram in grams]
        assert np.array_equal(values, np.min(single, axis=0))


def test_seed_decides_the_functions() -> None:
    assert np.array_equal(minhash.permutations(5, 3)[0], minhash.permutations(5, 3)[0])
    assert not np.array_equal(minhash.permutations(5, 3)[0], minhash.permutations(5, 4)[0])
    assert (minhash.permutations(100, 3)[0] % np.uint64(2) == 1).all()


def test_a_band_is_equal_where_all_its_rows_are() -> None:
    left = minhash.signature(list("abcdefghij"), 2, FUNCTIONS)
    right = left.copy()
    right[3] += np.uint64(1)  # row 3 lies in band 0 of 8 rows
    a, b = minhash.band_hashes(left, 14), minhash.band_hashes(right, 14)
    assert [x == y for x, y in zip(a, b, strict=True)] == [False] + [True] * 13
    assert all(-(2**63) <= value < 2**63 for value in a)


def test_signatures_of_a_release_stay_what_they_are() -> None:
    """A changed value here changes what every corpus holds: raise `STAGE.version` of deduplicate with it."""
    values = minhash.signature(
        ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"], 5, minhash.permutations(4, 1)
    )
    assert [int(value) for value in values] == [
        1804653677965881196,
        99538335753079588,
        5346070899230318624,
        500498510097808820,
    ]
