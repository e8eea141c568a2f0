"""The training samples: which tokens a sample holds is a pure function of its global index.

The shards of a split are one stream of tokens; window `w` is tokens `[w * window, w * window + window]`, one more than
the window, since targets are the inputs shifted by one. Sample `i` belongs to epoch `i // count`; which window it is, a
permutation decides that depends on seed and epoch. Nothing depends on ranks, so a loader has no state: step `s` with
batch size `b` reads samples `[s * b, (s + 1) * b)` on any number of ranks. Several corpora are mixed by shares, sample
by sample, by pure functions too.
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
BLOCK = 1024  # samples within which a mixture holds its shares exactly, rounded to 1/1024
_BLOCKS = 1 << 40  # keys of a mixture's blocks begin here, beyond those of epochs
_PREFETCH = 2  # batches read ahead while a step runs, so that one slow read from a disk delays no step
_ROUNDS = 4  # of a Feistel network: the fewest that make a permutation look random (Luby & Rackoff 1988)


def permuted(index: Ints, count: int, key: int) -> Ints:
    """Image of each `index` (0 <= index < count) under the permutation of `range(count)` that `key` selects.

    A Feistel network over the next power of two with an even exponent, applied again until the value is below `count`
    (cycle walking: Black & Rogaway 2002). It needs no table, whatever the size of the corpus, and integer arithmetic
    only, so it is the same on every machine.
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = _scrambled(np.arange(_ROUNDS, dtype=np.uint64) + np.uint64(key % 2**64))
    out = index.astype(np.uint64)
    outside = np.ones(out.shape, dtype=bool)  # values that are not below `count` yet
    while outside.any():
        values = out[outside]
        left, right = values >> half, values & mask
        for round_key in keys:
            left, right = right, left ^ (_scrambled(right + round_key) & mask)
        out[outside] = values = (left << half) | right
        outside[outside] = values >= np.uint64(count)
    return out.astype(np.int64)


def _scrambled(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea & Flood 2014), elementwise; arithmetic wraps."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _key(seed: int, epoch: int) -> int:
    """The permutation's key for an epoch; 2**64 / golden ratio is SplitMix64's increment, which keeps seed 0 from 0."""
    seeded = _scrambled(np.array([seed], dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return int(_scrambled(seeded + np.uint64(epoch))[0])


@dataclass(frozen=True)
class Stream:
    """The token files of one split as one sequence of `total` tokens. `content`: content hash of their artifact."""

    arrays: Sequence[npt.NDArray[Any]]
    content: str

    @functools.cached_property
    def _ends(self) -> Ints:
        return np.cumsum([len(array) for array in self.arrays], dtype=np.int64)

    @property
    def total(self) -> int:
        """Number of tokens."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, stop: int) -> Ints:
        """Tokens `[start, stop)`."""
        if not 0 <= start <= stop <= self.total:
            raise IndexError(f"tokens [{start}, {stop}) of {self.total}")
        out, filled = np.empty(stop - start, dtype=np.int64), 0
        part = int(np.searchsorted(self._ends, start, side="right"))
        while filled < len(out):
            array = self.arrays[part]
            offset = len(array) + start + filled - int(self._ends[part])
            piece = array[offset:][: len(out) - filled]
            out[filled : filled + len(piece)] = piece
            filled, part = filled + len(piece), part + 1
        return out


def open_split(published: Published, split: str, vocabulary: int, tokenizer: str | None = None) -> Stream:
    """The `split` (`train`, `validation`) of a shard artifact, memory-mapped; of a remote root, from its local copy.

    Files are listed in the manifest; others in the folder are not read. Raises `ArtifactError` if the tokens are of
    another vocabulary than the tokenizer's `vocabulary` or of another `tokenizer` (its SHA-256), or if a file's dtype
    is not the manifest's.
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
        if split == "train":  # windows are read in random order: reading on beyond each would fetch pages in vain
            shard.advise_random_access()
        if str(tokens.dtype) != numbers.dtype:
            raise ArtifactError(
                f"{folder / path} holds {tokens.dtype}, its manifest says {numbers.dtype}",
                "rerun shard with --force",
            )
        arrays.append(tokens)
    return Stream(arrays, published.manifest.content_hash)


def document_positions(ids: Tensor, end_of_text: int) -> Tensor:
    """Positions [rows, n] that restart after each `end_of_text`: `transformers` masks attention between documents by
    them.
    """
    columns = torch.arange(ids.shape[1]).expand_as(ids)
    starts = torch.zeros_like(ids)  # at the first token of each document its column, elsewhere 0
    starts[:, 1:] = torch.where(ids[:, :-1] == end_of_text, columns[:, 1:], 0)
    return columns - starts.cummax(dim=1).values


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
        """Tokens [n, window + 1] of the samples with these indices [n], from 0 without end: inputs `[:, :-1]`, targets
        `[:, 1:]`.
        """
        epochs, places = np.divmod(indices, self.count)
        windows = np.empty_like(places)
        for epoch in np.unique(epochs):
            members = epochs == epoch
            windows[members] = permuted(places[members], self.count, _key(self.seed, int(epoch)))
        return np.stack([self.window_at(int(window)) for window in windows])

    def window_at(self, window: int) -> Ints:
        """Tokens of window `window` of the stream, in the order of the corpus."""
        start = window * self.window
        return self.stream.read(start, start + self.window + 1)

    def batch(self, step: int, batch: int, rank: int = 0, ranks: int = 1) -> Tensor:
        """Ids [batch // ranks, window + 1] of a rank at a step; those of all ranks together are the step's batch."""
        rows = batch // ranks
        first = step * batch + rank * rows
        return torch.from_numpy(self.samples(np.arange(first, first + rows)))

    def state(self) -> dict[str, Any]:
        """What decides the samples and their order: kept in a checkpoint, for `check`."""
        return {"content": self.stream.content, "window": self.window, "seed": self.seed}

    def check(self, state: dict[str, Any]) -> None:
        """Raise `ArtifactError` if a checkpoint was made on another corpus or in another order."""
        if state != self.state():
            raise ArtifactError(
                f"the checkpoint read {_described(state)}, and this run reads {_described(self.state())}: resumed, it "
                "would see some samples twice and others never",
                "start the stage anew with --force",
            )


def _described(state: dict[str, Any]) -> str:
    mix = f", mixed with {len(state['mix'])}" if "mix" in state else ""
    return f"corpus {state.get('content', '?')[:16]} (window {state.get('window')}, seed {state.get('seed')}{mix})"


class Mixture(Loader):
    """Several streams by shares, whose sum is 1.

    Each block of `BLOCK` samples holds each share exactly, in an order of its own; within a stream the samples keep
    the order of its own loader. Raises `RecipeError` for a share below 1 / `BLOCK`.
    """

    def __init__(self, streams: Sequence[tuple[Stream, float]], window: int, seed: int) -> None:
        super().__init__(streams[0][0], window, seed)
        self.loaders = [Loader(stream, window, seed + n) for n, (stream, _) in enumerate(streams)]
        self.shares = [share for _, share in streams]
        # Samples per block: cumulative shares are rounded, not the shares, so that the counts sum to `BLOCK`.
        ends = np.rint(np.cumsum(self.shares) * BLOCK).astype(np.int64)
        self._counts = np.diff(ends, prepend=0)
        if (self._counts < 1).any() or ends[-1] != BLOCK:
            raise RecipeError(
                f"the shares {self.shares} of a mixture are below 1/{BLOCK}, or their sum is not 1",
                f"give shares of 1/{BLOCK} and more with the sum 1",
            )
        # Two blocks: a batch may lie across their boundary.
        self._block = functools.lru_cache(maxsize=2)(self._block_of)

    def _block_of(self, block: int) -> tuple[Ints, Ints]:
        """For each sample of a block: its stream, and its index among that stream's samples in the block."""
        order = permuted(np.arange(BLOCK), BLOCK, _key(self.seed, _BLOCKS + block))
        sources = np.repeat(np.arange(len(self._counts)), self._counts)[order]
        nth = np.empty_like(sources)
        for source, count in enumerate(self._counts):
            nth[sources == source] = np.arange(count)
        return sources, nth

    def samples(self, indices: Ints) -> Ints:
        """See `Loader`."""
        blocks, places = np.divmod(indices, BLOCK)
        out = np.empty((len(indices), self.window + 1), dtype=np.int64)
        for block in np.unique(blocks):
            sources, nth = self._block(int(block))
            for source, loader in enumerate(self.loaders):
                members = (blocks == block) & (sources[places] == source)
                if members.any():
                    out[members] = loader.samples(int(block) * self._counts[source] + nth[places[members]])
        return out

    def state(self) -> dict[str, Any]:
        """See `Loader`; of all streams."""
        mix = [[loader.stream.content, share] for loader, share in zip(self.loaders, self.shares, strict=True)]
        return super().state() | {"mix": mix}


class Prefetch:
    """The batches of one rank, read by a thread while the steps before them run."""

    def __init__(self, loader: Loader, batch: int, rank: int, ranks: int) -> None:
        self._read = functools.partial(loader.batch, batch=batch, rank=rank, ranks=ranks)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._batches: dict[int, Future[Tensor]] = {}

    def batch(self, step: int) -> Tensor:
        """As `Loader.batch`. The steps after it are read meanwhile; those of another order are forgotten."""
        steps = range(step, step + 1 + _PREFETCH)
        self._batches = {n: self._batches.get(n) or self._pool.submit(self._read, n) for n in steps}
        return self._batches.pop(step).result()
