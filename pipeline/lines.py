"""Files of lines: lists, evaluation sets and labelled texts that a user names, and the JSON lines that stages write."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.artifact import Building, File, describe
from pipeline.errors import InputError
from pipeline.storage import Storage


def unpacked(data: bytes, name: str, remedy: str) -> str:
    """The text of a file, gzipped or plain, without a BOM. Raises `InputError` where it is neither."""
    try:
        return (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:  # of damaged gzip all but the last
        raise InputError(f"{name} cannot be read as text, gzipped or plain: {error}", remedy) from error


def read(file: str, remedy: str) -> Iterator[tuple[int, str]]:
    """(number, line) of a file, gzipped or plain, without empty lines. Raises `InputError` where it cannot be read."""
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}", remedy) from error
    text = unpacked(data, file, remedy)
    # `splitlines` would cut at U+2028 inside a text.
    yield from ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def strings(value: Any) -> Iterator[str]:
    """Every string in plain data: the text of an evaluation set's line, whatever its keys are."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def is_json(file: str) -> bool:
    """Whether a file holds JSON lines, by its name."""
    return ".jsonl" in Path(file).name


def texts(file: str, remedy: str) -> Iterator[list[str]]:
    """The texts of each line of an evaluation set: all strings of a JSON line, or the line itself of another file.

    Raises `InputError` with file and line.
    """
    for number, line in read(file, remedy):
        yield list(strings(parsed(file, number, line))) if is_json(file) else [line]


def parsed(file: str, number: int, line: str) -> Any:
    """The value of a JSON line. Raises `InputError` with file and line."""
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(f"{file}:{number}: no JSON: {error}", "name a JSON-lines or a text file") from error


def finite(numbers: dict[str, Any]) -> dict[str, Any]:
    """Infinity and NaN become null: JSON has neither, and a skipped step has no loss to show."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in numbers.items()
    }


def write(storage: Storage, name: str, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines; numbers as in `finite`."""
    text = "".join(json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    storage.write(name, text.encode())


def write_rows(building: Building, path: str, rows: list[dict[str, Any]]) -> File:
    """Write JSON lines into the artifact in the making. Returns their manifest entry."""
    write(building.storage, building.file(path), rows)
    return describe(building.storage, building.pointer.folder, path, rows=len(rows))
