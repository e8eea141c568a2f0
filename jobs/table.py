"""Parquet files of an artifact: the same rows give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Storage

ROW_GROUP = 10_000  # rows; text of web pages is about 3 KB a row, so a group is about 30 MB


def write_table(storage: Storage, name: str, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    """Write rows as one file; a key that is not in a row becomes null."""
    table = pa.table({field.name: [row.get(field.name) for row in rows] for field in schema}, schema=schema)
    with storage.writing(name) as stream:
        pq.write_table(table, stream, compression="zstd", row_group_size=ROW_GROUP, store_schema=False)


def read_table(
    storage: Storage,
    name: str,
    columns: Sequence[str] | None = None,
    where: Sequence[tuple[str, str, Any]] | None = None,
) -> pa.Table:
    """A file, these columns only; `where` as in pyarrow: row groups that cannot match are not read."""
    with storage.reading(name) as stream:
        return pq.read_table(stream, columns=list(columns) if columns else None, filters=list(where) if where else None)


def read_rows(
    storage: Storage,
    name: str,
    columns: Sequence[str] | None = None,
    where: Sequence[tuple[str, str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """The rows of a file, as `read_table`."""
    rows: list[dict[str, Any]] = read_table(storage, name, columns, where).to_pylist()
    return rows
