"""The model of a crawl's near-duplicates: sizes of clusters, and the buckets in which their band hashes fall.

The docstring of `bench.simulate_dedup` says what is assumed of them, and what was measured.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.recipe import VerifiedDeduplicate

EXACT = 31 / 73  # share of exact copies among the dropped documents, measured on the shared crawl
LARGEST = 1 << 24  # documents of the largest cluster that is modelled
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@functools.lru_cache
def zipf(mean: float) -> tuple[float, Floats]:
    """Exponent and probabilities of a Zipf distribution of the sizes 1, 2, … `LARGEST` with this mean."""
    # Bisection: the mean falls as the exponent rises.
    sizes = np.arange(1.0, LARGEST + 1)
    logs = np.log(sizes)
    low, high = 1.5, 12.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        weights = np.exp(-middle * logs)
        low, high = (middle, high) if (weights @ sizes) / weights.sum() > mean else (low, middle)
    weights = np.exp(-high * logs)
    return high, weights / weights.sum()


@dataclass(frozen=True)
class Crawl:
    """The documents that filter kept, how many of them are no exact copies, and the sizes of the clusters of those."""

    documents: int
    unique: int
    exponent: float
    sizes: Ints  # of clusters, each that occurs
    counts: Ints  # how many clusters have it

    @classmethod
    def drawn(cls, documents: int, dropped: float, rng: np.random.Generator) -> Crawl:
        """A crawl of which this share is dropped.

        A cluster keeps one document, so the mean size of the clusters follows from the share.
        """
        unique = round(documents * (1 - dropped * EXACT))
        kept = documents * (1 - dropped)
        exponent, chances = zipf((1 - dropped * EXACT) / (1 - dropped))
        counts = rng.poisson(kept * chances)
        sizes = np.flatnonzero(counts)
        return cls(documents, unique, exponent, sizes + 1, counts[sizes])


@dataclass(frozen=True)
class Buckets:
    """The distribution of a crawl's band hashes over buckets and tasks.

    Small buckets, of which there are billions, are only counted; each one larger than `max_bucket` is listed.
    """

    small: Ints  # shape (max_bucket + 1, tasks): number of buckets of each size in each task
    large: Ints  # sizes of the larger buckets
    task: Ints  # the task of each of those

    @property
    def loads(self) -> Ints:
        """Band hashes of each task."""
        sizes = np.arange(len(self.small)) @ self.small
        beyond = np.bincount(self.task, weights=self.large, minlength=self.small.shape[1])
        loads: Ints = sizes + beyond.astype(np.int64)
        return loads

    @property
    def pairs(self) -> int:
        """Candidate pairs of all buckets; a pair that shares several bands counts once per band.

        A small bucket gives all its pairs, a larger one a star: each place with the smallest one.
        """
        sizes = np.arange(len(self.small))
        return int((sizes * (sizes - 1) // 2) @ self.small.sum(axis=1) + (self.large - 1).sum())


def kept_band(recipe: VerifiedDeduplicate) -> float:
    """The probability that a near copy has a band of its cluster's text: J^rows, averaged from `min_jaccard` to 1."""
    power, least = recipe.rows + 1, recipe.min_jaccard
    return (1 - least**power) / (power * (1 - least))


def buckets(crawl: Crawl, recipe: VerifiedDeduplicate, tasks: int, rng: np.random.Generator) -> Buckets:
    """Draw the buckets: per cluster and band one of its text with the copies that kept the band, one per other copy."""
    most, chance = recipe.max_bucket, kept_band(recipe)
    counts = np.zeros(most + 1, np.int64)  # small buckets of each size
    alone, large = 0, []  # buckets of one copy; sizes of the larger buckets
    # 1. Clusters of up to `max_bucket` documents: of all of one size together, how many copies kept the band.
    for size, count in zip(crawl.sizes, crawl.counts, strict=True):
        if size > most:
            break
        chances = np.array([binomial(int(size) - 1, copies, chance) for copies in range(size)])
        drawn = rng.multinomial(count * recipe.bands, chances / chances.sum())
        counts[1 : size + 1] += drawn
        alone += int(drawn @ np.arange(size - 1, -1, -1))
    # 2. Larger clusters, one by one: their buckets are small or large.
    beyond = np.repeat(crawl.sizes[crawl.sizes > most], crawl.counts[crawl.sizes > most])
    for _ in range(recipe.bands):
        kept = 1 + rng.binomial(beyond - 1, chance)
        alone += int((beyond - kept).sum())
        counts += np.bincount(kept[kept <= most], minlength=most + 1)
        large.append(kept[kept > most])
    # 3. The task of each bucket: a hash decides it, so all are equally likely.
    counts[1] += alone
    even = np.full(tasks, 1 / tasks)
    small = np.array([rng.multinomial(count, even) for count in counts])
    sizes = np.concatenate(large)
    return Buckets(small, sizes, rng.integers(0, tasks, len(sizes)))


def binomial(trials: int, kept: int, chance: float) -> float:
    """The probability of `kept` successes in so many trials."""
    ways = 1.0
    for i in range(kept):
        ways *= (trials - i) / (i + 1)
    return ways * chance**kept * (1 - chance) ** (trials - kept)
