"""Megatron's token files: what is written comes back, and damaged files are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ArtifactError
from tokenizer import shards
from tokenizer.shards import Shard

DTYPES = {"uint16": np.dtype(np.uint16), "int32": np.dtype(np.int32)}


def write(folder: Path, documents: list[list[int]], dtype: np.dtype[np.integer]) -> Path:
    path = folder / "train-00000.bin"
    path.write_bytes(b"".join(np.array(ids, dtype).tobytes() for ids in documents))
    path.with_suffix(".idx").write_bytes(shards.index([len(ids) for ids in documents], dtype))
    return path


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.lists(st.lists(st.integers(0, 65_534), max_size=20), max_size=20),
    dtype=st.sampled_from(list(DTYPES.values())),
)
def test_documents_come_back(tmp_path: Path, documents: list[list[int]], dtype: np.dtype[np.integer]) -> None:
    shard = Shard(write(tmp_path, documents, dtype))
    assert len(shard) == len(documents)
    assert shard.dtype == dtype
    assert shard.sizes.tolist() == [len(ids) for ids in documents]
    assert shard.tokens.tolist() == [token for ids in documents for token in ids]
    assert shard.tokens.ndim == 1


def test_the_index_is_megatrons() -> None:
    """By megatron/core/datasets/indexed_dataset.py: 9 bytes magic, version u64, code u8, sequences u64, documents u64,
    then int32 lengths, int64 byte pointers, int64 document indices (one more than documents)."""
    data = shards.index([3, 0, 5], np.dtype(np.uint16))
    assert data[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack("<QBQQ", data[9:34]) == (1, 8, 3, 4)
    assert np.frombuffer(data, np.int32, 3, 34).tolist() == [3, 0, 5]
    assert np.frombuffer(data, np.int64, 3, 46).tolist() == [0, 6, 6]
    assert np.frombuffer(data, np.int64, 4, 70).tolist() == [0, 1, 2, 3]
    assert len(data) == 102
    assert struct.unpack("<QBQQ", shards.index([1], np.dtype(np.int32))[9:34])[1] == 4


@pytest.mark.parametrize(
    ("vocabulary", "dtype"), [(512, "uint16"), (65_535, "uint16"), (65_536, "int32"), (100_270, "int32")]
)
def test_ids_are_as_wide_as_they_must_be(vocabulary: int, dtype: str) -> None:
    assert shards.dtype_for(vocabulary) == DTYPES[dtype]


def test_pointers_do_not_overflow() -> None:
    size = 2**31 - 1  # the largest count an int32 holds
    data = shards.index([size, size, size], np.dtype(np.int32))
    assert np.frombuffer(data, np.int64, 3, 46).tolist() == [0, 4 * size, 8 * size]


def damaged(head: bytes, body: bytes, how: str) -> tuple[bytes, bytes]:
    return {
        "magic": (b"X" + head[1:], body),
        "empty index": (b"", body),
        "version": (head[:9] + struct.pack("<Q", 2) + head[17:], body),
        "dtype code": (head[:17] + b"\x05" + head[18:], body),
        "other dtype": (
            head[:17] + b"\x04" + head[18:],
            body,
        ),  # dolma#142: ids of another width are junk, not an error
        "short index": (head[:-1], body),
        "long index": (head + b"\0", body),
        "short tokens": (head, body[:-2]),
        "long tokens": (head, body + b"\0\0"),
    }[how]


@pytest.mark.parametrize(
    "how",
    [
        "magic",
        "empty index",
        "version",
        "dtype code",
        "other dtype",
        "short index",
        "long index",
        "short tokens",
        "long tokens",
    ],
)
def test_damage_is_refused(tmp_path: Path, how: str) -> None:
    path = write(tmp_path, [[1, 2, 3], [4]], DTYPES["uint16"])
    head, body = damaged(path.with_suffix(".idx").read_bytes(), path.read_bytes(), how)
    path.with_suffix(".idx").write_bytes(head)
    path.write_bytes(body)
    with pytest.raises(ArtifactError, match="train-00000"):
        Shard(path)


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_a_missing_file_is_named(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path, [[1]], DTYPES["uint16"])
    path.with_suffix(ending).unlink()
    with pytest.raises(ArtifactError, match=ending):
        Shard(path)


def test_tokens_are_mapped_not_read(tmp_path: Path) -> None:
    shard = Shard(write(tmp_path, [[1, 2, 3]], DTYPES["uint16"]))
    assert not shard.tokens.flags.owndata
    shard.advise_random_access()
    assert shard.tokens.tolist() == [1, 2, 3]
    with pytest.raises(ValueError):
        shard.tokens[0] = 9  # read-only
