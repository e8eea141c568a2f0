"""The shuffles of deduplicate at the size of a snapshot, simulated on one core: `make bench-simulate-dedup`.

    python -m bench.simulate_dedup [--documents 150000000 1200000000] [--seed 1]

The model of a crawl; everything is assumed but what is called measured:

- A share of the documents is dropped: 73 of 757 (measured on the shared crawl), 16 of 36 in FineWeb (36 trillion tokens
  before MinHash within each snapshot, 20 after: Penedo et al. 2024), or 7 of 10, as a bad case. 31 of 73 of those are
  exact copies (measured on the shared crawl).
- The sizes of the clusters of the others have a Zipf distribution, with the exponent that yields that share.
- A near copy has kept each hash of its cluster's text with a probability drawn uniformly from `min_jaccard` to 1. The
  bands that it shares, and its similarity to every other copy, follow from its hashes.

The number of clusters of each size is drawn for the whole crawl. The load of every task of the band shuffle is drawn
too, from the multinomial distributions of the number of buckets of each size per task; it is neglected that a cluster's
14 buckets depend on each other. The largest task is then generated row by row, and the stage's own search
(`clusters.pairs`) runs on it, its memory traced. The cost of pairs after that is simulated hash by hash on up to 20,000
documents of the clusters of 2, of 3 and 4, of 5 to 8 documents and so on, and multiplied by their number; for clusters
beyond 16,384, whose documents cost no more each, with the rates of the class below.

Bytes per row are Spark's own; `--bytes` measures them again (which needs Java): rows of each shuffle with places of
90,000 parts, written compressed by a map task as large as one part of a snapshot.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bench.deduplicate import shuffles
from jobs.copies import clusters
from jobs.stage import session
from pipeline.recipe import Deduplicate, load

HOME = Path(__file__).resolve().parents[1]
DROPPED = {"shared crawl": 73 / 757, "FineWeb": 16 / 36, "bad case": 0.7}  # share of the documents
EXACT = 31 / 73  # share of exact copies among those
LARGEST = 1 << 24  # documents of a cluster
SAMPLED = 20_000  # documents of each class of sizes
BYTES = {  # per row of each shuffle, as written
    "exact hashes": 36.4,
    "bands, to leave out exact copies": 137.2,
    "band hashes": 15.8,
    "pairs": 15.5,
    "places of pairs": 9.1,
    "signatures": 238.1,
    "pairs to the first signature": 15.5,
    "pairs with it to the second": 246.0,
    "stars around others": 25.6,
    "edges, a round of components": 5 * 15.5,  # which shuffles them about five times
}
PARTS, PAGES = 90_000, 1_666  # parts of a snapshot; documents per part, where filter keeps 150 million
RATED = 1 << 14  # size up to which classes have rates of their own
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@functools.lru_cache
def zipf(mean: float) -> tuple[float, Floats]:
    """Exponent and probabilities of a Zipf distribution of the sizes 1, 2, … `LARGEST` with this mean."""
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
        """A crawl of which this share is dropped."""
        unique = round(documents * (1 - dropped * EXACT))
        kept = documents * (1 - dropped)
        exponent, chances = zipf((1 - dropped * EXACT) / (1 - dropped))
        counts = rng.poisson(kept * chances)
        sizes = np.flatnonzero(counts)
        return cls(documents, unique, exponent, sizes + 1, counts[sizes])


@dataclass(frozen=True)
class Buckets:
    """The distribution of a crawl's band hashes over buckets and tasks."""

    small: Ints  # shape (max_bucket + 1, tasks): number of buckets of each size in a task
    large: Ints  # sizes of the larger buckets
    task: Ints  # and the task of each

    @property
    def loads(self) -> Ints:
        """Band hashes of each task."""
        sizes = np.arange(len(self.small)) @ self.small
        beyond = np.bincount(self.task, weights=self.large, minlength=self.small.shape[1])
        loads: Ints = sizes + beyond.astype(np.int64)
        return loads

    @property
    def pairs(self) -> int:
        """Candidate pairs of all buckets; a pair that shares several bands counts for each."""
        sizes = np.arange(len(self.small))
        return int((sizes * (sizes - 1) // 2) @ self.small.sum(axis=1) + (self.large - 1).sum())


def kept_band(recipe: Deduplicate) -> float:
    """The probability that a near copy has a band of its cluster's text: J^rows, averaged from `min_jaccard` to 1."""
    power, least = recipe.rows + 1, recipe.min_jaccard
    return (1 - least**power) / (power * (1 - least))


def buckets(crawl: Crawl, recipe: Deduplicate, tasks: int, rng: np.random.Generator) -> Buckets:
    """Per cluster and band: one bucket of its text and the copies that kept the band, and one for each other copy."""
    most, chance = recipe.max_bucket, kept_band(recipe)
    counts = np.zeros(most + 1, np.int64)
    alone, large = 0, []
    for size, count in zip(crawl.sizes, crawl.counts, strict=True):
        if size > most:
            break
        ways = np.array([binomial(int(size) - 1, kept, chance) for kept in range(size)])
        drawn = rng.multinomial(count * recipe.bands, ways / ways.sum())
        counts[1 : size + 1] += drawn
        alone += int(drawn @ np.arange(size - 1, -1, -1))
    beyond = np.repeat(crawl.sizes[crawl.sizes > most], crawl.counts[crawl.sizes > most])
    for _ in range(recipe.bands):
        found = 1 + rng.binomial(beyond - 1, chance)
        alone += int((beyond - found).sum())
        counts += np.bincount(found[found <= most], minlength=most + 1)
        large.append(found[found > most])
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


def searched(found: Buckets, task: int, most: int, rng: np.random.Generator) -> tuple[int, int, float]:
    """Rows, pairs and peak bytes per row of the stage's own search in this task."""
    sizes = np.repeat(np.arange(most + 1), found.small[:, task])
    sizes = np.concatenate([sizes, found.large[found.task == task]])
    hashes = np.repeat(rng.integers(-(2**63), 2**63, len(sizes)), sizes)
    order = rng.permutation(len(hashes))
    hashes, places = hashes[order], order.astype(np.int64)
    del order, sizes
    tracemalloc.start()
    tracemalloc.reset_peak()
    pairs = sum(len(low) for _, low, _ in clusters.pairs(hashes, places, most))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return len(hashes), pairs, peak / len(hashes) + 16  # with the row itself, which is not traced


@dataclass
class Costs:
    """Rows of the steps after the search, for a sample or for a crawl."""

    documents: float = 0
    pairs: float = 0  # distinct candidates
    places: float = 0  # distinct ends of candidates, whose signatures are looked up
    edges: float = 0  # verified pairs
    starred: float = 0  # rows of the further stars, in all rounds
    again: float = 0  # distinct pairs among those

    def add(self, other: Costs, times: float) -> None:
        """Add the costs of another, multiplied."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))


def cost(sizes: Ints, recipe: Deduplicate, rng: np.random.Generator) -> Costs:
    """What clusters of these sizes cost, hash by hash, in the search and in `clusters.restarred`."""
    hashes, documents = recipe.bands * recipe.rows, int(sizes.sum())
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    like = rng.uniform(recipe.min_jaccard, 1, documents)
    like[np.cumsum(sizes) - sizes] = 1.0  # the text of which the others are copies
    kept = rng.random((documents, hashes), np.float32) < like[:, None]
    place = rng.permutation(documents)  # any of them may be the first in the crawl
    by_place = np.argsort(place)
    shares = kept.reshape(documents, recipe.bands, recipe.rows).all(axis=2)
    at, band = np.nonzero(shares)
    found = list(clusters.pairs(cluster[at] * recipe.bands + band, place[at], recipe.max_bucket))
    low, high = (np.concatenate([one[i] for one in found if len(one[1])] or [np.zeros(0, np.int64)]) for i in (1, 2))
    stars = [one for one in found if one[0] is not None]
    bucket, hub, point = stars[0] if stars else (np.zeros(0, np.int64),) * 3
    assert bucket is not None

    def alike(keys: Ints) -> Ints:
        pairs = by_place[keys // documents], by_place[keys % documents]
        same = [(kept[a] & kept[b]).sum(axis=1) for a, b in zip(*(np.array_split(p, 64) for p in pairs), strict=True)]
        chosen: Ints = keys[np.concatenate(same) / hashes >= recipe.min_jaccard]
        return chosen

    candidates = np.unique(low * documents + high)
    spent = Costs(documents, len(candidates), len(np.unique([candidates // documents, candidates % documents])))
    edges = alike(candidates)
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
        again = np.unique(hub * documents + point)
        spent.starred, spent.again = spent.starred + len(bucket), spent.again + len(again)
        edges = np.union1d(edges, alike(again))
    spent.edges = len(edges)
    return spent


def rates(crawl: Crawl, recipe: Deduplicate, rng: np.random.Generator) -> dict[int, Costs]:
    """Costs of a sample of the clusters of 2, of 3 and 4, …, by the largest size of the class."""
    by_class, largest = {}, 2
    while largest <= RATED:
        chosen = (crawl.sizes > largest // 2) & (crawl.sizes <= largest)
        sizes, counts = crawl.sizes[chosen], crawl.counts[chosen]
        if len(sizes):
            take = max(1, int(SAMPLED * counts.sum() / (sizes @ counts)))
            by_class[largest] = cost(rng.choice(sizes, take, p=counts / counts.sum()), recipe, rng)
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


def shuffled(crawl: Crawl, found: Buckets, spent: Costs) -> dict[str, tuple[float, float]]:
    """Rows and bytes of each shuffle."""
    rows = {
        "exact hashes": crawl.documents,
        "bands, to leave out exact copies": crawl.documents,
        "band hashes": int(found.loads.sum()),
        "pairs": found.pairs,
        "places of pairs": spent.places,
        "signatures": 2 * spent.places,
        "pairs to the first signature": spent.pairs + spent.again,
        "pairs with it to the second": spent.pairs + spent.again,
        "stars around others": spent.starred,
        "edges, a round of components": spent.edges,
    }
    return {name: (count, count * BYTES[name]) for name, count in rows.items()}


def line(*cells: object) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def measured(rng: np.random.Generator) -> None:
    """Print the bytes per row of shuffles that Spark writes."""
    spark = session.spark("bytes")
    spark.conf.set("spark.sql.adaptive.enabled", "false")

    def hashes(count: int) -> Ints:
        return rng.integers(-(2**63), 2**63, count)

    def places(count: int) -> Ints:
        return (rng.integers(0, PARTS, count) << 32) + rng.integers(0, PAGES, count)

    def signatures(count: int) -> pa.Array:
        return pa.array([rng.bytes(224) for _ in range(count)], pa.binary())

    own = np.arange(PAGES)
    arrays = pa.ListArray.from_arrays(np.arange(0, 14 * PAGES + 1, 14, dtype=np.int32), hashes(14 * PAGES))
    for name, tasks, rows in (
        ("exact hashes", 200, {"high": hashes(PAGES), "low": hashes(PAGES), "place": own}),
        ("bands, to leave out exact copies", 200, {"place": own, "bands": arrays}),
        ("band hashes", 525, {"hash": hashes(14 * PAGES), "place": np.repeat(own, 14)}),
        ("pairs", 200, {"low": places(400_000), "high": places(400_000)}),
        ("places of pairs", 200, {"place": places(100_000)}),
        ("signatures", 200, {"place": places(20_000), "signature": signatures(20_000)}),
        (
            "pairs with it to the second",
            200,
            {"high": places(20_000), "low": places(20_000), "left": signatures(20_000)},
        ),
        ("stars around others", 200, {"bucket": hashes(100_000), "low": places(100_000), "high": places(100_000)}),
    ):
        by = list(rows)[: 2 if name == "exact hashes" else 1]
        frame = spark.createDataFrame(pa.table(rows)).coalesce(1).repartition(tasks, *by)
        frame._jdf.queryExecution().toRdd().count()
        count, size = shuffles(spark)[-1]
        print(f"{name}: {size / count:.1f}", flush=True)
    spark.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[150_000_000, 1_200_000_000])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bytes", action="store_true", help="only measure the bytes per row of each shuffle")
    options = parser.parse_args()
    if options.bytes:
        measured(np.random.default_rng(options.seed))
        return
    recipe = load(HOME / "recipes/fineweb.yaml").deduplicate
    lines, tables = list[str](), list[tuple[str, dict[str, tuple[float, float]]]]()
    for name, dropped in DROPPED.items():
        rng = np.random.default_rng(options.seed)
        crawls = [Crawl.drawn(count, dropped, rng) for count in options.documents]
        sampled = rates(max(crawls, key=lambda crawl: crawl.documents), recipe, rng)
        for crawl in crawls:
            tasks = -(-crawl.documents * recipe.bands // clusters.HASHES_PER_TASK)
            found, spent = buckets(crawl, recipe, tasks, rng), costs(crawl, sampled)
            loads = found.loads
            rows, pairs, bytes_ = searched(found, int(loads.argmax()), recipe.max_bucket, rng)
            tables.append((f"{name}, {crawl.documents / 1e6:,.0f} M", shuffled(crawl, found, spent)))
            lines.append(
                line(
                    f"{name}, {crawl.exponent:.2f}",
                    f"{crawl.documents / 1e6:,.0f}",
                    f"{crawl.sizes[-1]:,}",
                    f"{tasks:,}",
                    f"{rows / 1e6:.2f}",
                    f"{rows / loads.mean():.3f}",
                    f"{len(found.large):,}",
                    f"{found.large.max(initial=0):,}",
                    f"{pairs / 1e6:.2f}",
                    f"{rows * bytes_ / 2**20:,.0f}",
                    f"{(spent.pairs + spent.again) / 1e6:,.0f}",
                )
            )
    print(f"{datetime.date.today()}, {time.process_time():.0f} CPU seconds\n")
    heads = (
        "dropped as in, exponent",
        "M documents",
        "largest cluster",
        "tasks",
        "largest task, M hashes",
        "of the mean",
    )
    heads += ("large buckets", "largest bucket", "its pairs, M", "its memory, MiB", "pairs verified, M")
    print("\n".join([line(*heads), f"|---|{'---:|' * (len(heads) - 1)}", *lines, ""]))
    print("GB shuffled (million rows)\n")
    print(line("shuffle", "bytes per row", *(name for name, _ in tables)))
    print(f"|---|{'---:|' * (len(tables) + 1)}")
    for shuffle, size in BYTES.items():
        cells = (f"{table[shuffle][1] / 1e9:,.1f} ({table[shuffle][0] / 1e6:,.0f})" for _, table in tables)
        print(line(shuffle, size, *cells))
    print(line("all", "", *(f"{sum(size for _, size in table.values()) / 1e9:,.0f}" for _, table in tables)))


if __name__ == "__main__":
    main()
