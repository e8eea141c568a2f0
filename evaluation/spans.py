"""Stage `spans`: an exact index of where runs of tokens occur in the training shards: one suffix array per shard.

    python evaluation/spans.py --recipe recipes/demo.yaml --root .crawl2chat/data

`memorization.py` builds it where it is missing. Suffixes are sorted by their first `DEPTH` tokens, by prefix doubling
(Manber & Myers 1993), shard by shard: about 28 bytes of memory per token of one shard. The array takes four bytes per
token and is memory-mapped. Longer runs are compared token by token, so results are exact whatever their length.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from evaluation.results import other_rank
from pipeline import artifact, command, errors
from pipeline.artifact import Building, File, Identity, Published, Stage
from pipeline.errors import ArtifactError
from pipeline.storage import Storage
from tokenizer.shards import Shard, sidecar, split_files

Ints = npt.NDArray[np.int64]

STAGE = Stage("spans", 1)
DEPTH = 64  # tokens that suffixes are sorted by: longer runs are rare enough to be compared one by one
_ORDER = ".order"


def suffix_array(tokens: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """The positions of `tokens` (fewer than 2^32), sorted by the `DEPTH` tokens that begin there, then by position."""
    # `ranks` orders the suffixes by their first `width` tokens; each round sorts pairs of ranks and so doubles `width`.
    count, width = len(tokens), 1
    ranks = tokens.astype(np.uint64) + np.uint64(1)  # 0: beyond the end, which sorts first
    while count and width < DEPTH:
        # The rank of the suffix in the upper half of a key, that of the suffix `width` tokens later in the lower half.
        key = ranks << np.uint64(32)
        key[:-width] |= ranks[width:]
        order = np.argsort(key)
        key = key[order]
        # Ranks are dense and begin at 1: a suffix has a higher one than its predecessor only if their keys differ.
        ranks[order[0]] = 1
        ranks[order[1:]] = np.cumsum(key[1:] != key[:-1], dtype=np.uint64) + np.uint64(1)
        if ranks[order[-1]] == count:
            break  # every suffix has a rank of its own
        width *= 2
    # Suffixes of equal rank are ordered by position, which stands in the lower half of the key and is all that is kept.
    key = ranks << np.uint64(32) | np.arange(count, dtype=np.uint64)
    key.sort()
    return key.astype(np.uint32)


@dataclass(frozen=True)
class Span:
    """`length` tokens of a query from `start` on, which occur `times` in the shards; one document that holds them."""

    start: int
    length: int
    times: int
    document: str
    url: str


class _IndexedShard:
    """One shard with its suffix array and its sidecar. `name` is that of the `.bin` in `storage`."""

    def __init__(self, storage: Storage, name: str, tokens: Path, order: Path) -> None:
        self._storage, self._name = storage, name
        self.tokens: npt.NDArray[Any] = Shard(tokens).tokens
        self.order: npt.NDArray[np.uint32] = np.memmap(order, np.uint32, mode="r")
        if len(self.order) != len(self.tokens):
            raise ArtifactError(
                f"{order} does not belong to {tokens}: it indexes {len(self.order)} tokens of {len(self.tokens)}",
                "run evaluation/spans.py with --force",
            )

    @functools.cached_property
    def documents(self) -> dict[str, Any]:
        """Columns of the sidecar: `id`, `url` and `start` of each document, in order."""
        with self._storage.reading(sidecar(self._name)) as stream:
            table = pq.read_table(stream, columns=["id", "url", "start"])
        return {column: table[column].to_numpy() for column in table.column_names}

    def document_at(self, position: int) -> tuple[str, str]:
        """Id and URL of the document that holds the token at `position`."""
        row = int(np.searchsorted(self.documents["start"], position, side="right")) - 1
        return str(self.documents["id"][row]), str(self.documents["url"][row])

    def _tokens_at(self, places: Ints, depth: int) -> Ints:
        """The token at `depth` in the suffix at each place of the suffix array; -1 beyond the end of the shard."""
        positions = self.order[places].astype(np.int64) + depth
        tokens = self.tokens[np.minimum(positions, len(self.tokens) - 1)].astype(np.int64)
        return np.where(positions < len(self.tokens), tokens, -1)

    def _lower_bound(self, low: Ints, high: Ints, wanted: Ints, depth: int) -> Ints:
        """Per element: the first place of [low, high) whose token at `depth` is at least `wanted`, or `high`."""
        # Binary search of all elements at once, until the last of their intervals is empty.
        low, high = low.copy(), high.copy()
        while (open_ := low < high).any():
            middle = (low + high) // 2
            less = np.zeros(len(low), dtype=bool)
            less[open_] = self._tokens_at(middle[open_], depth) < wanted[open_]
            low = np.where(open_ & less, middle + 1, low)
            high = np.where(open_ & ~less, middle, high)
        return low

    def longest_runs(self, query: Ints, ends: Ints) -> tuple[Ints, Ints, Ints]:
        """Per token of `query`: length of the longest run from it on that occurs here, how often, and one position.

        `query` may be several queries in a row: `ends[i]` is where the one that holds token `i` ends.
        """
        # 1. Each token begins with the whole suffix array as its interval [low, high). With every further token the
        #    interval shrinks to the suffixes that go on with it; where none does, the run ends and the interval stays.
        low, high = np.zeros(len(query), dtype=np.int64), np.full(len(query), len(self.order), dtype=np.int64)
        lengths = np.zeros(len(query), dtype=np.int64)
        active = np.arange(len(query))
        for depth in range(DEPTH):
            active = active[active + depth < ends[active]]
            if not len(active):
                break
            wanted = query[active + depth]
            first = self._lower_bound(low[active], high[active], wanted, depth)
            last = self._lower_bound(first, high[active], wanted + 1, depth)
            matched = first < last
            active = active[matched]
            low[active], high[active], lengths[active] = first[matched], last[matched], depth + 1
        # 2. The size of the interval is the number of occurrences, and its first suffix is one of them.
        times, positions = high - low, self.order[np.minimum(low, len(self.order) - 1)].astype(np.int64)
        # 3. Beyond `DEPTH` the array is not sorted: runs that long are extended token by token in all their suffixes.
        for start in active:
            candidates = self.order[low[start] : high[start]].astype(np.int64)
            length = DEPTH
            while start + length < ends[start]:
                inside = candidates[candidates + length < len(self.tokens)]
                same = inside[self.tokens[inside + length] == query[start + length]]
                if not len(same):
                    break
                candidates, length = same, length + 1
            lengths[start], times[start], positions[start] = length, len(candidates), candidates.min()
        return lengths, times, positions


class Index:
    """The training splits of shard artifacts with their suffix arrays; `pairs`: an artifact and its index each."""

    def __init__(self, pairs: Iterable[tuple[Published, Published]]) -> None:
        self.shards: list[_IndexedShard] = []
        for shards, arrays in pairs:
            sizes = {file.path: file.bytes for file in arrays.content.files}
            tokens, orders = shards.on_disk(".bin", ".idx"), arrays.on_disk()
            self.shards += [
                _IndexedShard(shards.storage, shards.file(path), tokens / path, orders / _order_file(path))
                for path in split_files(shards, "train")
                if sizes[_order_file(path)]  # an empty file cannot be mapped
            ]

    def spans(self, queries: Sequence[Sequence[int]]) -> list[Span]:
        """The longest run of each query that occurs in the shards; of length 0 where none of its tokens does."""
        # 1. All queries in one array, searched together. Of every token: the longest run from it on over all shards,
        #    how often it occurs in them, and where once (shard and position).
        sizes = np.array([len(query) for query in queries], dtype=np.int64)
        stops = np.cumsum(sizes)
        flat = np.array([token for query in queries for token in query], dtype=np.int64)
        ends = np.repeat(stops, sizes)
        lengths = np.zeros(len(flat), dtype=np.int64)
        times, positions, shard_of = np.zeros_like(lengths), np.zeros_like(lengths), np.zeros_like(lengths)
        for number, shard in enumerate(self.shards):
            own_lengths, own_times, own_positions = shard.longest_runs(flat, ends)
            longer, equal = own_lengths > lengths, own_lengths == lengths
            # A longer run replaces what earlier shards hold; of an equally long one the occurrences add up.
            times = np.where(longer, own_times, np.where(equal, times + own_times, times))
            positions, shard_of = np.where(longer, own_positions, positions), np.where(longer, number, shard_of)
            lengths = np.maximum(lengths, own_lengths)
        # 2. Of each query the first of its longest runs.
        spans = []
        for start, stop in zip(stops - sizes, stops, strict=True):
            if start == stop or not lengths[start:stop].any():
                spans.append(Span(0, 0, 0, "", ""))
                continue
            best = int(start + lengths[start:stop].argmax())
            document, url = self.shards[shard_of[best]].document_at(int(positions[best]))
            spans.append(Span(best - int(start), int(lengths[best]), int(times[best]), document, url))
        return spans


def _order_file(path: str) -> str:
    return path.replace(".bin", _ORDER)


def build(storage: Storage, run: str, sources: Sequence[Published], force: bool = False) -> Index:
    """The index of shard artifacts. Each has an artifact of its own, which is built where it is not published yet."""
    pairs = []
    for shards in sources:
        opened = artifact.start(storage, run, Identity(STAGE, {}, 0, [shards.as_input()]), force=force)
        pairs.append((shards, _publish(opened, storage, shards) if isinstance(opened, Building) else opened))
    return Index(pairs)


def _publish(building: Building, storage: Storage, shards: Published) -> Published:
    """Build the suffix arrays of a shard artifact and publish them; one commit per shard, so a kill costs one shard."""
    done = building.commits()
    files = []
    for name in split_files(shards, "train"):
        path = _order_file(name)
        if path not in done:
            tokens = Shard(shards.on_disk(".bin", ".idx") / name).tokens
            storage.write(building.file(path), suffix_array(tokens).tobytes())
            described = artifact.describe(storage, building.pointer.folder, path, len(tokens))
            building.commit(path, described.model_dump())
            done[path] = described.model_dump()
        files.append(File(**done[path]))
    return building.publish(files)


def main() -> None:
    """Entry point."""
    job = command.parse(__doc__)
    if not other_rank():
        shards = (
            artifact.read(job.storage, job.input[0]) if job.input else artifact.of_run(job.storage, job.run, "shard")
        )
        build(job.storage, job.run, [shards], job.force)


if __name__ == "__main__":
    errors.run(main)
