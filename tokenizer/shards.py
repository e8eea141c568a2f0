"""Token shards in Megatron's format: `.bin` holds the ids of all documents in a row, `.idx` where each document begins.

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
# The sidecar has one row per document, in the order of the shard: its number; id, URL and WARC record (file and offset)
# that it was extracted from, the license that its page declares; its first token in the shard, its number of tokens,
# and the UTF-8 bytes of its text.
SIDECAR = pa.schema(
    [
        ("document", pa.int64()),
        *((name, pa.string()) for name in ("id", "url", "warc", "license")),
        ("offset", pa.int64()),
        ("start", pa.int64()),
        ("tokens", pa.int64()),
        ("bytes", pa.int64()),
    ]
)
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, document boundaries
# Megatron's codes of the two dtypes that `dtype_for` chooses from; files of any other are refused.
_CODES: dict[int, type[np.integer]] = {4: np.int32, 8: np.uint16}


def split_files(published: Published, split: str) -> list[str]:
    """The `.bin` files of a split in a shard artifact, by the names and in the order of its manifest."""
    paths = (file.path for file in published.content.files)
    return [path for path in paths if path.startswith(f"{split}-") and path.endswith(".bin")]


def sidecar(path: str) -> str:
    """Name of the table beside a `.bin` that says which tokens came from which document and URL (schema `SIDECAR`)."""
    return path.removesuffix(".bin") + ".documents.parquet"


def dtype_for(vocabulary: int) -> np.dtype[np.integer]:
    """The dtype that token ids are stored as: uint16 for a vocabulary of up to 65,535 ids, else int32."""
    return np.dtype(np.uint16 if vocabulary <= 65_535 else np.int32)


def index(sizes: Sequence[int], dtype: np.dtype[np.integer]) -> bytes:
    """The content of an `.idx` file, for documents of `sizes` tokens stored as `dtype`."""
    code = next(code for code, kind in _CODES.items() if np.dtype(kind) == dtype)
    counts = np.asarray(sizes, dtype=np.int32)
    # Byte offset of each document: summed in int64, since a shard may exceed 2 GiB.
    pointers = np.zeros(len(counts), dtype=np.int64)
    np.cumsum(counts[:-1].astype(np.int64) * dtype.itemsize, out=pointers[1:])
    # Megatron groups sequences into documents; ours are one sequence each.
    documents = np.arange(len(counts) + 1, dtype=np.int64)
    header = _HEADER.pack(MAGIC, 1, code, len(counts), len(documents))
    return header + counts.tobytes() + pointers.tobytes() + documents.tobytes()


class Shard:
    """A token shard, memory-mapped. `path` is the `.bin`; the `.idx` lies beside it.

    `tokens`: ids of all documents, 1-D; `sizes`: number of tokens of each document. Raises `ArtifactError` where a file
    is missing or damaged, or where the two do not belong together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        idx = path.with_suffix(".idx")
        # 1. The header, and the length of the index that follows from it.
        try:
            size, length = path.stat().st_size, idx.stat().st_size
            with idx.open("rb") as stream:
                head = stream.read(_HEADER.size)
        except FileNotFoundError as error:
            raise ArtifactError(f"{error.filename} does not exist", "run the shard stage again") from error
        if len(head) < _HEADER.size or not head.startswith(MAGIC):
            raise ArtifactError(f"{idx} is not the index of a token shard", "run the shard stage again")
        _, version, code, count, boundaries = _HEADER.unpack(head)
        if version != 1 or code not in _CODES or length != _HEADER.size + 12 * count + 8 * boundaries:
            raise ArtifactError(f"{idx} is damaged or of an unknown version", "run the shard stage again")
        self.dtype: np.dtype[np.integer] = np.dtype(_CODES[code])
        # 2. The index, mapped and not read: that of a large corpus takes hundreds of megabytes, and most readers need
        #    only its end.
        pointers_at = _HEADER.size + 4 * count
        self.sizes: npt.NDArray[np.int32] = _mapped(idx, np.int32, count, _HEADER.size)
        pointers = _mapped(idx, np.int64, count, pointers_at)
        # 3. The last document must end where the `.bin` ends: a file cut short, or of another width, reads as junk.
        if (int(pointers[-1]) + int(self.sizes[-1]) * self.dtype.itemsize if count else 0) != size:
            raise ArtifactError(f"{path} is not as long as {idx.name} says", "run the shard stage again")
        self.tokens: npt.NDArray[np.integer] = np.zeros(0, self.dtype)
        if size:
            with path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self.tokens = np.frombuffer(self._map, self.dtype)

    def advise_random_access(self) -> None:
        """Switch off the kernel's read-ahead (`madvise`): of windows read in shuffled order, no neighbour is needed."""
        if len(self.tokens):
            self._map.madvise(mmap.MADV_RANDOM)

    def __len__(self) -> int:
        return len(self.sizes)


def _mapped(path: Path, kind: type[np.integer], count: int, offset: int) -> npt.NDArray[Any]:
    """`count` numbers of a file from byte `offset` on, memory-mapped."""
    # An empty range cannot be mapped.
    return np.memmap(path, kind, mode="r", offset=offset, shape=(count,)) if count else np.zeros(0, kind)
