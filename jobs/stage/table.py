"""Parquet files of an artifact: the same rows give the same bytes, and memory holds one row group at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pipeline.storage import Storage

# A row group ends with the row that reaches one of these limits; the text of a web page has about 4,000 characters.
GROUP_ROWS = 10_000
GROUP_CHARACTERS = 8 << 20  # of strings, and bytes of binary values, in all its rows
_BATCH = 1000  # rows read at once
_FORMAT = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(pre_buffer=False)  # with it memory holds whole files
)

Row = dict[str, Any]


@contextmanager
def writing(storage: Storage, name: str, schema: pa.Schema) -> Iterator[Callable[[Row], None]]:
    """A new file; yields a function that writes one row. A column that a row lacks is null.

    As with `Storage.writing`, the file appears whole or not at all, and a kill leaves nothing behind.
    """
    group: list[Row] = []
    characters = 0
    with (
        storage.writing(name, spooled=True) as stream,
        pq.ParquetWriter(stream, schema, compression="zstd", store_schema=False) as file,
    ):

        def end_group() -> None:
            columns = {field.name: [row.get(field.name) for row in group] for field in schema}
            file.write_table(pa.table(columns, schema=schema), row_group_size=GROUP_ROWS)
            group.clear()

        def write(row: Row) -> None:
            nonlocal characters
            if len(group) >= GROUP_ROWS or characters >= GROUP_CHARACTERS:
                end_group()
                characters = 0
            group.append(row)
            characters += sum(len(value) for value in row.values() if isinstance(value, (str, bytes)))

        yield write
        end_group()


def write_table(storage: Storage, name: str, rows: Iterable[Row], schema: pa.Schema) -> None:
    """Write rows as one file, as with `writing`."""
    with writing(storage, name, schema) as write:
        for row in rows:
            write(row)


def read_table(
    storage: Storage,
    name: str,
    columns: Sequence[str] | None = None,
    where: Sequence[tuple[str, str, Any]] | None = None,
) -> pa.Table:
    """A file, or some of its columns. `where`: pyarrow's filters; row groups that cannot match are not read."""
    with storage.reading(name) as stream:
        return pq.read_table(stream, columns=list(columns) if columns else None, filters=list(where) if where else None)


def read_rows(
    storage: Storage,
    name: str,
    columns: Sequence[str] | None = None,
    where: Sequence[tuple[str, str, Any]] | None = None,
) -> Iterator[Row]:
    """The rows of a file, as with `read_table`, one after another, in little memory."""
    with storage.reading(name) as stream:
        for batch in _FORMAT.make_fragment(stream).to_batches(
            columns=list(columns) if columns else None,
            filter=pq.filters_to_expression(list(where)) if where else None,
            batch_size=_BATCH,
            batch_readahead=1,
            use_threads=False,
        ):
            yield from batch.to_pylist()
