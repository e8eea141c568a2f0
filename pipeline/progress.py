"""Progress as JSON lines: one stream per stage, in numbered parts, since objects in a store cannot be appended to.

Each line is an `Event`. The terminal bar, the Airflow task log, the report and the live page all read these.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.storage import Storage

PART_LINES = 500  # per part; the newest part is written whole each time, so this bounds the cost of one write
_PUT_SECONDS = 1.0  # between two writes


@dataclass(frozen=True)
class Event:
    """One line: `done` of `total` units (`warc`, `part`, `step`) at `time` (Unix seconds), with named numbers."""

    time: float
    stage: str
    done: int
    total: int
    unit: str
    numbers: dict[str, Any]


class Progress:
    """Appends the events of one attempt of a stage below `folder`; later attempts begin later parts.

    `stream`: a name, where several processes write at the same time.
    """

    def __init__(self, storage: Storage, folder: str, stage: str, unit: str, stream: str = "") -> None:
        self._storage, self._folder, self._stage, self._unit = storage, folder, stage, unit
        self._prefix = f"{stream}-" if stream else ""
        self._part = sum(name.startswith(f"{folder}/{self._prefix}") for name in storage.names(folder))
        self._lines: list[str] = []
        self._put = 0.0

    def __call__(self, done: int, total: int, **numbers: Any) -> None:
        """Record that `done` of `total` units are finished. Written at once when all are, else once a second."""
        event = Event(time.time(), self._stage, done, total, self._unit, numbers)
        self._lines.append(json.dumps(asdict(event)))
        if done >= total or len(self._lines) >= PART_LINES or time.monotonic() - self._put > _PUT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is not yet written."""
        if not self._lines:
            return
        name = f"{self._folder}/{self._prefix}{self._part:05d}.jsonl"
        self._storage.write(name, ("\n".join(self._lines) + "\n").encode())
        self._put = time.monotonic()
        if len(self._lines) >= PART_LINES:
            self._part, self._lines = self._part + 1, []


def events(storage: Storage, folder: str) -> Iterator[Event]:
    """All events of a stage over all its attempts: of each stream in the order they were written, one after another."""
    for name in parts(storage, folder):
        yield from part_events(storage, name)


def parts(storage: Storage, folder: str) -> list[str]:
    """The files of a stage's events, in the order in which they began; of one stream, only the last one still grows."""
    return [name for name in storage.names(folder) if name.endswith(".jsonl")]


def part_events(storage: Storage, name: str) -> Iterator[Event]:
    """The events of one of `parts`."""
    for line in storage.read(name).splitlines():
        yield Event(**json.loads(line))


def last_event(storage: Storage, folder: str) -> Event | None:
    """The newest event of a stage, or None; of each stream only the last part is read."""
    streams = {name.rpartition("-")[0]: name for name in parts(storage, folder)}
    last = [Event(**json.loads(storage.read(name).splitlines()[-1])) for name in streams.values()]
    return max(last, key=lambda event: event.time, default=None)
