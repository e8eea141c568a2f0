"""Token shards in Megatron's format: `.bin` holds ids one after another, `.idx` says where each document begins.

Format: Megatron-LM, `megatron/core/datasets/indexed_dataset.py` (MMIDIDX version 1).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.artifact import Published
from pipeline.errors import ArtifactError

MAGIC = b"MMIDIDX\x00\x00"
# A row per document, in order: its number, where it came from, its first token in the shard, how many tokens it has,
# and the UTF-8 bytes of the text that they stand for.
SIDECAR = pa.schema(
    [
        ("document", pa.int64()),
        *((name, pa.string()) for name in ("id", "url", "warc")),
        ("offset", pa.int64()),
        ("start", pa.int64()),
        ("tokens", pa.int64()),
        ("bytes", pa.int64()),
    ]
)
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, document boundaries
_CODES: dict[int, type[np.integer]] = {4: np.int32, 8: np.uint16}


def of_split(published: Published, split: str) -> list[str]:
    """The `.bin` files of a split in a shard artifact, as its manifest names them, in order."""
    paths = (file.path for file in published.content.files)
    return [path for path in paths if path.startswith(f"{split}-") and path.endswith(".bin")]


def sidecar(path: str) -> str:
    """Name of the table beside a `.bin` that says which tokens came from which document and URL: `SIDECAR`."""
    return path.removesuffix(".bin") + ".documents.parquet"


def dtype_for(vocabulary: int) -> np.dtype[np.integer]:
    """uint16 for up to 65,535 ids, else int32."""
    return np.dtype(np.uint16 if vocabulary <= 65_535 else np.int32)


def index(sizes: Sequence[int], dtype: np.dtype[np.integer]) -> bytes:
    """The `.idx` of documents of so many tokens each."""
    code = next(code for code, kind in _CODES.items() if np.dtype(kind) == dtype)
    counts = np.asarray(sizes, dtype=np.int32)
    pointers = np.zeros(len(counts), dtype=np.int64)
    np.cumsum(counts[:-1].astype(np.int64) * dtype.itemsize, out=pointers[1:])
    documents = np.arange(len(counts) + 1, dtype=np.int64)
    header = _HEADER.pack(MAGIC, 1, code, len(counts), len(documents))
    return header + counts.tobytes() + pointers.tobytes() + documents.tobytes()


class Shard:
    """A shard mapped into memory. `path` is the `.bin`; the `.idx` lies beside it.

    `tokens`: all ids, 1-D; `sizes`: tokens of each document. Raises `ArtifactError` where the two do not fit.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        beside = path.with_suffix(".idx")
        try:
            size, length = path.stat().st_size, beside.stat().st_size
            head = beside.open("rb").read(_HEADER.size)
        except FileNotFoundError as error:
            raise ArtifactError(f"{error.filename} does not exist", "run the shard stage again") from error
        if len(head) < _HEADER.size or not head.startswith(MAGIC):
            raise ArtifactError(f"{beside} is no index of a token shard", "run the shard stage again")
        _, version, code, count, boundaries = _HEADER.unpack(head)
        if version != 1 or code not in _CODES or length != _HEADER.size + 12 * count + 8 * boundaries:
            raise ArtifactError(f"{beside} is damaged or of an unknown version", "run the shard stage again")
        self.dtype: np.dtype[np.integer] = np.dtype(_CODES[code])
        # Mapped, not read: the index of a large corpus is hundreds of megabytes, and most readers need its end only.
        after = _HEADER.size + 4 * count
        self.sizes: npt.NDArray[np.int32] = _mapped(beside, np.int32, count, _HEADER.size)
        pointers = _mapped(beside, np.int64, count, after)
        if (int(pointers[-1]) + int(self.sizes[-1]) * self.dtype.itemsize if count else 0) != size:
            raise ArtifactError(f"{path} is not as long as {beside.name} says", "run the shard stage again")
        self.tokens: npt.NDArray[np.integer] = np.zeros(0, self.dtype)
        if size:
            with path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self.tokens = np.frombuffer(self._map, self.dtype)

    def read_at_random(self) -> None:
        """Tell the system to fetch a page when it is asked for one, and not its neighbours too."""
        if len(self.tokens):
            self._map.madvise(mmap.MADV_RANDOM)

    def __len__(self) -> int:
        return len(self.sizes)


def _mapped(path: Path, kind: type[np.integer], count: int, offset: int) -> npt.NDArray[Any]:
    """`count` numbers of a file from `offset` on; what is empty cannot be mapped."""
    return np.memmap(path, kind, mode="r", offset=offset, shape=(count,)) if count else np.zeros(0, kind)
