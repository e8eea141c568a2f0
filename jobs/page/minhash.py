"""MinHash signatures of word n-grams (Broder 1997), as FineWeb uses them: bands x rows hashes of 64 bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

Signature = npt.NDArray[np.uint64]


def permutations(count: int, seed: int) -> tuple[Signature, Signature]:
    """Odd multipliers and offsets of `count` hash functions h(x) = mix(a * x + b) on 64 bits."""
    random = np.random.Generator(np.random.PCG64(seed))
    a = random.integers(0, 2**64, count, dtype=np.uint64) | np.uint64(1)
    b = random.integers(0, 2**64, count, dtype=np.uint64)
    return a, b


def signature(words: Sequence[str], n: int, functions: tuple[Signature, Signature]) -> Signature:
    """Smallest value of each hash function over the n-grams of the words; shape (count,).

    A text of fewer than n words is one n-gram of all it has.
    """
    last = max(1, len(words) - n + 1)
    grams = {" ".join(words[i : i + n]) for i in range(last)}
    hashes = np.fromiter((xxhash.xxh3_64_intdigest(gram.encode()) for gram in grams), np.uint64, len(grams))
    a, b = functions
    with np.errstate(over="ignore"):
        values = hashes[:, None] * a + b  # modulo 2**64
        values ^= values >> np.uint64(32)  # the low bits of a product are weak: fold the high ones in
        values *= np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio (Knuth, TAOCP vol. 3, 6.4)
    least: Signature = values.min(axis=0)
    return least


def band_hashes(values: Signature, bands: int) -> list[int]:
    """One signed 64-bit hash a band, as Spark's `bigint` holds them."""
    rows = values.reshape(bands, -1)
    return [
        int(np.uint64(xxhash.xxh3_64_intdigest(row.tobytes(), seed=band)).astype(np.int64))
        for band, row in enumerate(rows)
    ]


def similarity(left: bytes, right: bytes) -> float:
    """Estimate of the Jaccard similarity from two signatures' bytes: the share of equal hashes."""
    return float(np.mean(np.frombuffer(left, np.uint64) == np.frombuffer(right, np.uint64)))
