"""The cost of the steps after the band search, simulated hash by hash on a sample of the clusters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.simulation.crawl import LARGEST, Crawl, Ints
from jobs.copies import clusters
from pipeline.recipe import VerifiedDeduplicate

SAMPLED = 20_000  # documents per class of cluster sizes
RATED = 1 << 14  # size up to which classes have rates of their own: a document of a larger cluster costs no more


@dataclass
class Costs:
    """Rows of the steps after the search, for a sample or for a crawl."""

    documents: float = 0
    pairs: float = 0  # distinct candidate pairs
    places: float = 0  # distinct ends of candidate pairs, whose signatures are looked up
    edges: float = 0  # pairs that are near copies
    star_rows: float = 0  # rows of the further stars of large buckets, in all rounds
    star_pairs: float = 0  # distinct pairs among those

    def add(self, other: Costs, times: float) -> None:
        """Add `times` the costs of another."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))


def cost(sizes: Ints, recipe: VerifiedDeduplicate, rng: np.random.Generator) -> Costs:
    """What clusters of these sizes cost in the search and in `clusters.restarred`, simulated hash by hash."""
    # 1. The documents: `cluster` of each, and `kept`, shape (documents, hashes): which of its text's hashes it has.
    hashes, documents = recipe.bands * recipe.rows, int(sizes.sum())
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    likeness = rng.uniform(recipe.min_jaccard, 1, documents)
    likeness[np.cumsum(sizes) - sizes] = 1.0  # the text of which the others are copies
    kept = rng.random((documents, hashes), np.float32) < likeness[:, None]
    place = rng.permutation(documents)  # any of them may be the first in the crawl
    by_place = np.argsort(place)
    # 2. The search, on the bands that were kept whole: others are in no bucket with another document.
    shares = kept.reshape(documents, recipe.bands, recipe.rows).all(axis=2)
    at, band = np.nonzero(shares)
    found = list(clusters.pairs(cluster[at] * recipe.bands + band, place[at], recipe.max_bucket))
    none = np.zeros(0, np.int64)
    low, high = (np.concatenate([arrays[i] for arrays in found if len(arrays[1])] or [none]) for i in (1, 2))
    stars = [arrays for arrays in found if arrays[0] is not None]
    bucket, hub, point = stars[0] if stars else (none, none, none)
    assert bucket is not None

    def alike(keys: Ints) -> Ints:
        """Of pairs, each written as low * documents + high, those that are similar enough."""
        pairs = by_place[keys // documents], by_place[keys % documents]
        # In 64 pieces, which bounds the memory.
        same = [(kept[a] & kept[b]).sum(axis=1) for a, b in zip(*(np.array_split(p, 64) for p in pairs), strict=True)]
        chosen: Ints = keys[np.concatenate(same) / hashes >= recipe.min_jaccard]
        return chosen

    # 3. Verification of the candidate pairs.
    candidates = np.unique(low * documents + high)
    spent = Costs(documents, len(candidates), len(np.unique([candidates // documents, candidates % documents])))
    edges = alike(candidates)
    # 4. Further stars, as in `clusters.restarred`: the places of a large bucket that are not like its hub form a star
    # around the smallest of them, and so on.
    for _ in range(recipe.max_bucket):
        left = ~np.isin(hub * documents + point, edges)
        bucket, point = bucket[left], point[left]
        if not len(bucket):
            break
        order = np.lexsort((point, bucket))
        bucket, point = bucket[order], point[order]
        starts = np.concatenate(([True], bucket[1:] != bucket[:-1]))
        hub = point[starts][np.cumsum(starts) - 1]
        bucket, point, hub = bucket[~starts], point[~starts], hub[~starts]
        tried = np.unique(hub * documents + point)
        spent.star_rows += len(bucket)
        spent.star_pairs += len(tried)
        edges = np.union1d(edges, alike(tried))
    spent.edges = len(edges)
    return spent


def rates(crawl: Crawl, recipe: VerifiedDeduplicate, rng: np.random.Generator) -> dict[int, Costs]:
    """Costs of a sample of each class of clusters, of 2, of 3 and 4, of 5 to 8 …, by the largest size of the class."""
    by_class, largest = {}, 2
    while largest <= RATED:
        chosen = (crawl.sizes > largest // 2) & (crawl.sizes <= largest)
        sizes, counts = crawl.sizes[chosen], crawl.counts[chosen]
        if len(sizes):
            clusters_taken = max(1, int(SAMPLED * counts.sum() / (sizes @ counts)))
            by_class[largest] = cost(rng.choice(sizes, clusters_taken, p=counts / counts.sum()), recipe, rng)
        largest *= 2
    return by_class


def costs(crawl: Crawl, sampled: dict[int, Costs]) -> Costs:
    """Costs of the whole crawl, by the rates of its classes; beyond the last class by its rates."""
    total = Costs()
    ends = sorted(sampled)
    for largest, least in zip(ends, [1, *ends], strict=False):
        upper = largest if largest != ends[-1] else LARGEST
        chosen = (crawl.sizes > least) & (crawl.sizes <= upper)
        total.add(sampled[largest], int(crawl.sizes[chosen] @ crawl.counts[chosen]) / sampled[largest].documents)
    return total
