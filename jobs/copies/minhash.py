"""MinHash signatures of word n-grams (Broder 1997), as FineWeb uses them: bands * rows hashes of 64 bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

Signature = npt.NDArray[np.uint64]
Functions = tuple[Signature, Signature]  # multipliers and offsets, of `permutations`
_AT_ONCE = 28  # functions computed at once: their values for a page's n-grams fit into the processor's cache


def permutations(count: int, seed: int) -> Functions:
    """Odd multipliers and offsets of `count` hash functions h(x) = mix(a * x + b) on 64 bits."""
    random = np.random.Generator(np.random.PCG64(seed))
    a = random.integers(0, 2**64, count, dtype=np.uint64) | np.uint64(1)
    b = random.integers(0, 2**64, count, dtype=np.uint64)
    return a, b


def signature(words: Sequence[str], n: int, functions: Functions) -> Signature:
    """Smallest value of each hash function over the n-grams of the words; shape (count,).

    A text of fewer than n words counts as one n-gram.
    """
    following = zip(*(words[i:] for i in range(n)), strict=False) if len(words) >= n else [words]
    grams = set(map(" ".join, following))
    hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, map(str.encode, grams)), np.uint64, len(grams))
    a, b = functions
    least = np.empty(len(a), np.uint64)
    with np.errstate(over="ignore"):
        for i in range(0, len(a), _AT_ONCE):
            some = slice(i, i + _AT_ONCE)
            values = a[some, None] * hashes
            values += b[some, None]  # modulo 2**64
            values ^= values >> np.uint64(32)  # the low bits of a product are weak: fold the high ones in
            values *= np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio (Knuth, TAOCP vol. 3, 6.4)
            least[some] = values.min(axis=1)
    return least


def band_hashes(values: Signature, bands: int) -> list[int]:
    """One 64-bit hash per band, signed as Spark's `bigint` is."""
    rows = values.reshape(bands, -1)
    return [
        int(np.uint64(xxhash.xxh3_64_intdigest(row.tobytes(), seed=band)).astype(np.int64))
        for band, row in enumerate(rows)
    ]


def shortened(values: Signature) -> bytes:
    """The lower 16 bits of each hash: all that `similarities` needs (Li & König 2010, b-bit minwise hashing).

    Different hashes agree in these bits once in 65,536 times: among 112 hashes, 0.002 too many are taken as equal.
    """
    return values.astype(np.uint16).tobytes()


def similarities(left: bytes, right: bytes, pairs: int) -> npt.NDArray[np.float64]:
    """Estimated Jaccard similarities, shape (pairs,). `left` and `right`: concatenated `shortened` signatures."""
    if not pairs:
        return np.zeros(0)
    equal = np.frombuffer(left, np.uint16) == np.frombuffer(right, np.uint16)
    shares: npt.NDArray[np.float64] = equal.reshape(pairs, -1).mean(axis=1)
    return shares
