"""Stage `spans`: where runs of tokens stand in our own shards: a suffix array a shard, by the first `DEPTH` tokens.

    python evaluation/spans.py --recipe recipes/demo.yaml --root .crawl2chat/data

`memorization.py` makes it too where it is missing. Four bytes a token, mapped into memory; made shard by shard by
prefix doubling (Manber & Myers 1993), which takes about 28 bytes of memory a token of one shard. What is found is
compared token by token: exact, whatever its length.
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

from evaluation.results import spare
from pipeline import artifact, command, errors
from pipeline.artifact import Building, File, Published, Stage
from pipeline.errors import ArtifactError
from pipeline.storage import Storage
from tokenizer.shards import Shard, of_split, sidecar

Ints = npt.NDArray[np.int64]

STAGE = Stage("spans", 1)
DEPTH = 64  # longer runs are rare enough to be compared one by one
_ORDER = ".order"


def order_of(tokens: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """The positions of `tokens` (fewer than 2^32), sorted by the `DEPTH` tokens that begin there, then by number."""
    count, width = len(tokens), 1
    ranks = tokens.astype(np.uint64) + np.uint64(1)  # 0: beyond the end, which sorts first
    while count and width < DEPTH:
        key = ranks << np.uint64(32)
        key[:-width] |= ranks[width:]
        order = np.argsort(key)
        key = key[order]
        ranks[order[0]] = 1
        ranks[order[1:]] = np.cumsum(key[1:] != key[:-1], dtype=np.uint64) + np.uint64(1)
        if ranks[order[-1]] == count:
            break  # every suffix has a rank of its own
        width *= 2
    key = ranks << np.uint64(32) | np.arange(count, dtype=np.uint64)
    key.sort()
    return key.astype(np.uint32)  # the lower half


@dataclass(frozen=True)
class Span:
    """`length` tokens of a query from `start` on, which stand `times` in the shards, and one document that has them."""

    start: int
    length: int
    times: int
    document: str
    url: str


class _Part:
    """One shard with its suffix array and its sidecar."""

    def __init__(self, storage: Storage, name: str, tokens: Path, order: Path) -> None:
        self._storage, self._name = storage, name
        self.tokens: npt.NDArray[Any] = Shard(tokens).tokens
        self.order: npt.NDArray[np.uint32] = np.memmap(order, np.uint32, mode="r")
        if len(self.order) != len(self.tokens):
            raise ArtifactError(f"{order} does not belong to {tokens}", "run evaluation/spans.py with --force")

    @functools.cached_property
    def documents(self) -> dict[str, Any]:
        """Columns of the sidecar: `id`, `url` and `start` of each document, in order."""
        with self._storage.reading(sidecar(self._name)) as stream:
            table = pq.read_table(stream, columns=["id", "url", "start"])
        return {column: table[column].to_numpy() for column in table.column_names}

    def document_at(self, position: int) -> tuple[str, str]:
        """Id and URL of the document that holds a token."""
        row = int(np.searchsorted(self.documents["start"], position, side="right")) - 1
        return str(self.documents["id"][row]), str(self.documents["url"][row])

    def _at(self, places: Ints, depth: int) -> Ints:
        """The token `depth` after the suffix at each place of the order; -1 beyond the end."""
        positions = self.order[places].astype(np.int64) + depth
        found = self.tokens[np.minimum(positions, len(self.tokens) - 1)].astype(np.int64)
        return np.where(positions < len(self.tokens), found, -1)

    def _bound(self, low: Ints, high: Ints, wanted: Ints, depth: int) -> Ints:
        """The first place of [low, high) whose token at `depth` is at least `wanted`, each."""
        low, high = low.copy(), high.copy()
        while (open_ := low < high).any():
            middle = (low + high) // 2
            less = np.zeros(len(low), dtype=bool)
            less[open_] = self._at(middle[open_], depth) < wanted[open_]
            low = np.where(open_ & less, middle + 1, low)
            high = np.where(open_ & ~less, middle, high)
        return low

    def longest(self, query: Ints, ends: Ints) -> tuple[Ints, Ints, Ints]:
        """For each start in `query`: the longest run that stands here, how often, and where once.

        `ends[i]`: where the query that holds token `i` ends.
        """
        low, high = np.zeros(len(query), dtype=np.int64), np.full(len(query), len(self.order), dtype=np.int64)
        lengths = np.zeros(len(query), dtype=np.int64)
        going = np.arange(len(query))
        for depth in range(DEPTH):
            going = going[going + depth < ends[going]]
            if not len(going):
                break
            wanted = query[going + depth]
            first = self._bound(low[going], high[going], wanted, depth)
            last = self._bound(first, high[going], wanted + 1, depth)
            found = first < last
            going = going[found]
            low[going], high[going], lengths[going] = first[found], last[found], depth + 1
        times, positions = high - low, self.order[np.minimum(low, len(self.order) - 1)].astype(np.int64)
        for start in going:
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
    """The training splits of shard artifacts with their suffix arrays. `made`: pairs of both."""

    def __init__(self, made: Iterable[tuple[Published, Published]]) -> None:
        self.parts: list[_Part] = []
        for shards, arrays in made:
            sizes = {file.path: file.bytes for file in arrays.content.files}
            tokens, orders = shards.on_disk(".bin", ".idx"), arrays.on_disk()
            self.parts += [
                _Part(shards.storage, shards.file(path), tokens / path, orders / _name(path))
                for path in of_split(shards, "train")
                if sizes[_name(path)]  # what is empty cannot be mapped
            ]

    def spans(self, queries: Sequence[Sequence[int]]) -> list[Span]:
        """The longest run of each query that stands in the shards; of length 0 where none of its tokens does."""
        sizes = np.array([len(query) for query in queries], dtype=np.int64)
        stops = np.cumsum(sizes)
        flat = np.array([token for query in queries for token in query], dtype=np.int64)
        ends = np.repeat(stops, sizes)
        lengths = np.zeros(len(flat), dtype=np.int64)
        times, where, part = np.zeros_like(lengths), np.zeros_like(lengths), np.zeros_like(lengths)
        for number, one in enumerate(self.parts):
            found, often, position = one.longest(flat, ends)
            longer = found > lengths
            times = np.where(longer, often, np.where(found == lengths, times + often, times))
            where, part = np.where(longer, position, where), np.where(longer, number, part)
            lengths = np.maximum(lengths, found)
        made = []
        for start, stop in zip(stops - sizes, stops, strict=True):
            if start == stop or not lengths[start:stop].any():
                made.append(Span(0, 0, 0, "", ""))
                continue
            best = int(start + lengths[start:stop].argmax())
            document, url = self.parts[part[best]].document_at(int(where[best]))
            made.append(Span(best - int(start), int(lengths[best]), int(times[best]), document, url))
        return made


def _name(path: str) -> str:
    return path.replace(".bin", _ORDER)


def build(storage: Storage, run: str, sources: Sequence[Published], force: bool = False) -> Index:
    """The index of shard artifacts, an artifact each: found, or made now, one commit a shard."""
    made = []
    for shards in sources:
        opened = artifact.open_stage(storage, run, STAGE, {}, 0, [shards.as_input()], force=force)
        made.append((shards, _publish(opened, storage, shards) if isinstance(opened, Building) else opened))
    return Index(made)


def _publish(building: Building, storage: Storage, shards: Published) -> Published:
    done = building.commits()
    files = []
    for name in of_split(shards, "train"):
        path = _name(name)
        if path not in done:
            tokens = Shard(shards.on_disk(".bin", ".idx") / name).tokens
            storage.write(building.file(path), order_of(tokens).tobytes())
            described = artifact.describe(storage, building.pointer.folder, path, len(tokens))
            building.commit(path, described.model_dump())
            done[path] = described.model_dump()
        files.append(File(**done[path]))
    return building.publish(files)


def main() -> None:
    """Entry point."""
    job = command.parse(__doc__)
    if not spare():
        shards = (
            artifact.read(job.storage, job.input[0]) if job.input else artifact.of_run(job.storage, job.run, "shard")
        )
        build(job.storage, job.run, [shards], job.force)


if __name__ == "__main__":
    errors.run(main)
