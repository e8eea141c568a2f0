"""Tables are written and read by row groups: no more of them is held, and what is written is the same."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.stage import table
from pipeline.errors import StorageError
from pipeline.storage import Storage

SCHEMA = pa.schema([("id", pa.string()), ("n", pa.int64()), ("text", pa.string())])

# What a process grows by, in MiB, that writes and reads so many rows of 4,000 characters of two bytes.
GROWN = """
import resource, sys
from jobs.stage.table import read_rows, write_table
from pipeline.storage import Storage
from tests.jobs.test_table import SCHEMA
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
storage, many, before = Storage(sys.argv[1]), int(sys.argv[2]), peak()
rows = ({"id": str(i), "n": i, "text": f"{i}’" * (4000 // len(f"{i}’"))} for i in range(many))
write_table(storage, "rows", rows, SCHEMA)
assert sum(row["n"] for row in read_rows(storage, "rows")) == many * (many - 1) // 2
print(peak() - before)
"""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


def groups(storage: Storage, name: str) -> list[int]:
    with storage.reading(name) as stream:
        found = pq.ParquetFile(stream).metadata
        return [found.row_group(i).num_rows for i in range(found.num_row_groups)]


def test_a_row_group_ends_with_so_many_rows_or_characters(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "GROUP_ROWS", 4)
    monkeypatch.setattr(table, "GROUP_CHARACTERS", 1000)
    sizes = [1, 1, 1, 1, 1, 1200, 400, 400, 400, 1]
    rows = [{"id": str(i), "n": i, "text": "x" * size} for i, size in enumerate(sizes)]
    table.write_table(storage, "rows", rows, SCHEMA)
    assert groups(storage, "rows") == [4, 2, 3, 1]
    assert list(table.read_rows(storage, "rows")) == rows
    table.write_table(storage, "again", iter(rows), SCHEMA)
    assert storage.sha256("again") == storage.sha256("rows")


def test_a_key_that_is_missing_is_null_and_no_rows_are_a_file_too(storage: Storage) -> None:
    table.write_table(storage, "rows", [{"n": 1}], SCHEMA)
    assert list(table.read_rows(storage, "rows")) == [{"id": None, "n": 1, "text": None}]
    table.write_table(storage, "none", [], SCHEMA)
    assert list(table.read_rows(storage, "none")) == []
    assert table.read_table(storage, "none").schema == SCHEMA


def test_columns_and_conditions(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "GROUP_ROWS", 10)
    table.write_table(storage, "rows", [{"id": str(i % 7), "n": i} for i in range(95)], SCHEMA)
    where = [("id", "=", "3"), ("n", "<=", 40)]
    assert list(table.read_rows(storage, "rows", ("n",), where)) == [{"n": n} for n in range(3, 41, 7)]
    assert table.read_table(storage, "rows", ("n",), where)["n"].to_pylist() == list(range(3, 41, 7))


def test_a_block_that_fails_leaves_nothing(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "GROUP_ROWS", 2)
    with pytest.raises(pa.ArrowInvalid):
        table.write_table(storage, "rows", [{"n": i} for i in range(5)] + [{"n": "no number"}], SCHEMA)
    with pytest.raises(ZeroDivisionError):
        table.write_table(storage, "rows", ({"n": 1 // (4 - i)} for i in range(5)), SCHEMA)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(StorageError, match="File too large"):
            table.write_table(storage, "rows", ({"id": str(i), "n": i} for i in range(1000)), SCHEMA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert storage.sizes("") == {}
    with pytest.raises(StorageError, match="does not exist"):
        list(table.read_rows(storage, "rows"))


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def grown(many: int) -> float:
        made = subprocess.run(
            [sys.executable, "-c", GROWN, str(tmp_path), str(many)], capture_output=True, text=True, check=True
        )
        return float(made.stdout)

    few, many = grown(10_000), grown(70_000)  # 60,000 rows hold 460 MiB of characters
    assert many < few + 200
