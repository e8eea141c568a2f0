"""Which tokens a training sample holds: a pure function of its global index.

The shards of a split are one stream of tokens; window `w` is tokens `[w * window, w * window + window]`, one more than
the window, since inputs and targets are one apart. Sample `i` is a window in epoch `i // count`, by a permutation that
seed and epoch decide. Nothing depends on ranks, so a loader has no state: step `s` of batch `b` reads samples
`[s * b, (s + 1) * b)` wherever it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.artifact import Published
from pipeline.errors import ArtifactError, RecipeError

Ints = npt.NDArray[np.int64]
_ROUNDS = 4  # of a Feistel network: the fewest that make a permutation look random (Luby & Rackoff 1988)


def permuted(index: Ints, count: int, key: int) -> Ints:
    """Position of each `index` (0 <= index < count) in the permutation of `range(count)` that `key` names.

    A Feistel network over the next even power of two, walked until it falls below `count` (Black & Rogaway 2002):
    no table, so it holds for any corpus; integer arithmetic only, so it is the same everywhere.
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = _mixed(np.arange(_ROUNDS, dtype=np.uint64) + np.uint64(key % 2**64))
    out = index.astype(np.uint64)
    waiting = np.ones(out.shape, dtype=bool)
    while waiting.any():
        values = out[waiting]
        left, right = values >> half, values & mask
        for round_key in keys:
            left, right = right, left ^ (_mixed(right + round_key) & mask)
        out[waiting] = values = (left << half) | right
        waiting[waiting] = values >= np.uint64(count)
    return out.astype(np.int64)


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea & Flood 2014), elementwise; arithmetic wraps."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _key(seed: int, epoch: int) -> int:
    seeded = _mixed(np.array([seed], dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return int(_mixed(seeded + np.uint64(epoch))[0])


@dataclass(frozen=True)
class Stream:
    """The token files of one split as one sequence of `total` tokens. `content` names the corpus they belong to."""

    arrays: Sequence[npt.NDArray[Any]]
    content: str

    @property
    def total(self) -> int:
        """Tokens."""
        return sum(len(array) for array in self.arrays)

    def read(self, start: int, stop: int) -> Ints:
        """Tokens `[start, stop)`."""
        out, at, filled = np.empty(stop - start, dtype=np.int64), 0, 0
        for array in self.arrays:
            low, high = max(start - at, 0), min(stop - at, len(array))
            if low < high:
                out[filled : filled + high - low] = array[low:high]
                filled += high - low
            at += len(array)
            if at >= stop:
                break
        if filled != stop - start:
            raise IndexError(f"tokens [{start}, {stop}) of {self.total}")
        return out


def open_split(published: Published, split: str, vocabulary: int) -> Stream:
    """The `split` (`train`, `validation`) of a shard artifact, memory-mapped.

    Files come from the manifest, never from the folder. `ArtifactError` where the tokens were made for another
    vocabulary than the tokenizer's `vocabulary`, or a file is of another type than the manifest says.
    """
    from tokenizer.shards import Shard

    numbers = published.content.numbers
    if numbers["vocabulary"] != vocabulary:
        raise ArtifactError(
            f"{published.folder} holds ids of a vocabulary of {numbers['vocabulary']}, the tokenizer has {vocabulary}",
            "use the tokenizer that the shards were made with",
        )
    arrays = []
    for name in published.files(".bin"):
        if name.rsplit("/", 1)[1].startswith(f"{split}-"):
            tokens = Shard(Path(published.storage.local_path(name))).tokens
            if str(tokens.dtype) != numbers["dtype"]:
                raise ArtifactError(
                    f"{name} holds {tokens.dtype}, its manifest says {numbers['dtype']}", "rerun shard with --force"
                )
            arrays.append(tokens)
    return Stream(arrays, published.manifest.content_hash)


class Loader:
    """Samples of `window` + 1 tokens from a stream, in an order that `seed` decides."""

    def __init__(self, stream: Stream, window: int, seed: int) -> None:
        self.stream, self.window, self.seed = stream, window, seed
        self.count = max(0, (stream.total - 1) // window)
        if self.count == 0:
            raise RecipeError(
                f"window {window} needs {window + 1} tokens, and the corpus has {stream.total}",
                "use a smaller window or more text",
            )

    def sample(self, index: int) -> Ints:
        """Tokens of sample `index` (any number from 0): inputs `[:-1]`, targets `[1:]`."""
        epoch, place = divmod(index, self.count)
        return self.window_at(int(permuted(np.array([place]), self.count, _key(self.seed, epoch))[0]))

    def window_at(self, window: int) -> Ints:
        """Tokens of window `window` of the stream, in the order of the corpus."""
        start = window * self.window
        return self.stream.read(start, start + self.window + 1)

    def batch(self, step: int, batch: int, rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
        """`ids` and `mask` [rows, window + 1] of this rank for a step; the ranks' rows together are the step's."""
        rows = batch // ranks
        first = step * batch + rank * rows
        ids = torch.from_numpy(np.stack([self.sample(first + row) for row in range(rows)]))
        return {"ids": ids, "mask": torch.ones_like(ids)}

    def state(self) -> dict[str, Any]:
        """What a checkpoint remembers, for `check`."""
        return {"content": self.stream.content, "window": self.window, "seed": self.seed}

    def check(self, state: dict[str, Any]) -> None:
        """Raise `ArtifactError` where a checkpoint was made on another corpus or in another order."""
        if state != self.state():
            raise ArtifactError(
                f"the checkpoint read corpus {state.get('content', '?')[:16]} (window {state.get('window')}, seed "
                f"{state.get('seed')}), this one is {self.stream.content[:16]} ({self.window}, {self.seed})",
                "start the stage anew with --force",
            )
