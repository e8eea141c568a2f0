"""Which tokens a training sample holds: a pure function of its global index.

The shards of a split are one stream of tokens; window `w` is tokens `[w * window, w * window + window]`, one more than
the window, since inputs and targets are one apart. Sample `i` is a window in epoch `i // count`, by a permutation that
seed and epoch decide. Nothing depends on ranks, so a loader has no state: step `s` of batch `b` reads samples
`[s * b, (s + 1) * b)` wherever it runs. Several corpora are mixed by shares, sample by sample, as purely.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.artifact import Published
from pipeline.errors import ArtifactError, RecipeError
from pipeline.numbers import ShardNumbers

Ints = npt.NDArray[np.int64]
BLOCK = 1024  # samples in which a mixture holds its shares exactly
_BLOCKS = 1 << 40  # keys of blocks lie beyond those of epochs
_AHEAD = 2  # batches that are read while a step runs
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

    @functools.cached_property
    def _ends(self) -> Ints:
        return np.cumsum([len(array) for array in self.arrays], dtype=np.int64)

    @property
    def total(self) -> int:
        """Tokens."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, stop: int) -> Ints:
        """Tokens `[start, stop)`."""
        if not 0 <= start <= stop <= self.total:
            raise IndexError(f"tokens [{start}, {stop}) of {self.total}")
        out, filled = np.empty(stop - start, dtype=np.int64), 0
        part = int(np.searchsorted(self._ends, start, side="right"))
        while filled < len(out):
            array, at = self.arrays[part], start + filled - int(self._ends[part])  # counted from the part's end
            piece = array[len(array) + at :][: len(out) - filled]
            out[filled : filled + len(piece)] = piece
            filled, part = filled + len(piece), part + 1
        return out


def open_split(published: Published, split: str, vocabulary: int, tokenizer: str | None = None) -> Stream:
    """The `split` (`train`, `validation`) of a shard artifact, memory-mapped; of a remote root, from its local copy.

    Files come from the manifest, never from the folder. `ArtifactError` where the tokens were made for another
    vocabulary than the tokenizer's `vocabulary`, by another `tokenizer` (its sha256), or a file is of another type
    than the manifest says.
    """
    from tokenizer.shards import Shard, split_files

    numbers = ShardNumbers.of(published)
    if numbers.vocabulary != vocabulary:
        raise ArtifactError(
            f"{published.folder} holds ids of a vocabulary of {numbers.vocabulary}, the tokenizer has {vocabulary}",
            "use the tokenizer that the shards were made with",
        )
    if tokenizer not in (None, numbers.tokenizer):
        raise ArtifactError(
            f"{published.folder} was made by tokenizer {numbers.tokenizer[:16]}, not by {str(tokenizer)[:16]}",
            "use the tokenizer that the shards were made with",
        )
    arrays = []
    folder = published.on_disk(".bin", ".idx")
    for path in split_files(published, split):
        shard = Shard(folder / path)
        tokens = shard.tokens
        if split == "train":  # its windows come in no order
            shard.advise_random_access()
        if str(tokens.dtype) != numbers.dtype:
            raise ArtifactError(
                f"{folder / path} holds {tokens.dtype}, its manifest says {numbers.dtype}",
                "rerun shard with --force",
            )
        arrays.append(tokens)
    return Stream(arrays, published.manifest.content_hash)


def document_positions(ids: Tensor, end_of_text: int) -> Tensor:
    """Positions [rows, n] that restart after each `end_of_text`: what a `transformers` model takes for documents."""
    places = torch.arange(ids.shape[1]).expand_as(ids)
    begins = torch.zeros_like(ids)
    begins[:, 1:] = torch.where(ids[:, :-1] == end_of_text, places[:, 1:], 0)
    return places - begins.cummax(dim=1).values


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

    def samples(self, indices: Ints) -> Ints:
        """Tokens of samples (any numbers from 0) [n, window + 1]: inputs `[:, :-1]`, targets `[:, 1:]`."""
        epochs, places = np.divmod(indices, self.count)
        windows = np.empty_like(places)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            windows[mine] = permuted(places[mine], self.count, _key(self.seed, int(epoch)))
        return np.stack([self.window_at(int(window)) for window in windows])

    def window_at(self, window: int) -> Ints:
        """Tokens of window `window` of the stream, in the order of the corpus."""
        start = window * self.window
        return self.stream.read(start, start + self.window + 1)

    def batch(self, step: int, batch: int, rank: int = 0, ranks: int = 1) -> Tensor:
        """Ids [rows, window + 1] of this rank for a step; the ranks' rows together are the step's."""
        rows = batch // ranks
        first = step * batch + rank * rows
        return torch.from_numpy(self.samples(np.arange(first, first + rows)))

    def state(self) -> dict[str, Any]:
        """What a checkpoint remembers, for `check`."""
        return {"content": self.stream.content, "window": self.window, "seed": self.seed}

    def check(self, state: dict[str, Any]) -> None:
        """Raise `ArtifactError` where a checkpoint was made on another corpus or in another order."""
        if state != self.state():
            raise ArtifactError(
                f"the checkpoint read {_said(state)}, this one is {_said(self.state())}",
                "start the stage anew with --force",
            )


def _said(state: dict[str, Any]) -> str:
    mix = f", mixed with {len(state['mix'])}" if "mix" in state else ""
    return f"corpus {state.get('content', '?')[:16]} (window {state.get('window')}, seed {state.get('seed')}{mix})"


class Mixture(Loader):
    """Several streams by shares (together 1): each block of `BLOCK` samples holds each share exactly, in an order of
    its own, and of each stream the samples come in its own order. Raises `RecipeError` for a share below 1 / `BLOCK`.
    """

    def __init__(self, streams: Sequence[tuple[Stream, float]], window: int, seed: int) -> None:
        super().__init__(streams[0][0], window, seed)
        self.loaders = [Loader(stream, window, seed + n) for n, (stream, _) in enumerate(streams)]
        self.shares = [share for _, share in streams]
        ends = np.rint(np.cumsum(self.shares) * BLOCK).astype(np.int64)
        self._counts = np.diff(ends, prepend=0)
        if (self._counts < 1).any() or ends[-1] != BLOCK:
            raise RecipeError(f"shares {self.shares} of a mixture", f"give shares of 1/{BLOCK} and more that make up 1")
        self._block = functools.lru_cache(maxsize=2)(self._block_of)

    def _block_of(self, block: int) -> tuple[Ints, Ints]:
        """Of each place of a block: which stream, and the how manieth sample of that stream in the block."""
        order = permuted(np.arange(BLOCK), BLOCK, _key(self.seed, _BLOCKS + block))
        sources = np.repeat(np.arange(len(self._counts)), self._counts)[order]
        nth = np.empty_like(sources)
        for source, count in enumerate(self._counts):
            nth[sources == source] = np.arange(count)
        return sources, nth

    def samples(self, indices: Ints) -> Ints:
        """As `Loader.samples`."""
        blocks, places = np.divmod(indices, BLOCK)
        out = np.empty((len(indices), self.window + 1), dtype=np.int64)
        for block in np.unique(blocks):
            sources, nth = self._block(int(block))
            for source, loader in enumerate(self.loaders):
                mine = (blocks == block) & (sources[places] == source)
                if mine.any():
                    out[mine] = loader.samples(int(block) * self._counts[source] + nth[places[mine]])
        return out

    def state(self) -> dict[str, Any]:
        """As `Loader.state`, of all streams."""
        mix = [[loader.stream.content, share] for loader, share in zip(self.loaders, self.shares, strict=True)]
        return super().state() | {"mix": mix}


class Prefetch:
    """The batches of one rank, read by a thread while the step before them runs."""

    def __init__(self, loader: Loader, batch: int, rank: int, ranks: int) -> None:
        self._read = functools.partial(loader.batch, batch=batch, rank=rank, ranks=ranks)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._waiting: dict[int, Future[Tensor]] = {}

    def batch(self, step: int) -> Tensor:
        """As `Loader.batch`; steps in order are read before they are asked for."""
        wanted = range(step, step + 1 + _AHEAD)
        self._waiting = {n: self._waiting.get(n) or self._pool.submit(self._read, n) for n in wanted}
        return self._waiting.pop(step).result()
