"""Events come back in order, over parts and attempts, and nothing that was flushed is lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline import progress
from pipeline.progress import Progress, events
from pipeline.storage import Storage

FOLDER = "_work/extract/0/progress"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


def test_events_hold_what_was_told(storage: Storage) -> None:
    before = time.time()
    report = Progress(storage, FOLDER, "extract", "warc")
    report(1, 2, pages=10)
    report(2, 2, pages=20, share=0.5)
    first, last = events(storage, FOLDER)
    assert before <= first.time <= last.time <= time.time()
    assert (first.stage, first.done, first.total, first.unit, first.numbers) == ("extract", 1, 2, "warc", {"pages": 10})
    assert last.numbers == {"pages": 20, "share": 0.5}


def test_long_stages_are_split_into_parts_in_order(storage: Storage) -> None:
    total = 2 * progress.PART_LINES + 7
    report = Progress(storage, FOLDER, "pretrain", "step")
    for step in range(1, total + 1):
        report(step, total)
    assert len(storage.names(FOLDER)) == 3
    assert [event.done for event in events(storage, FOLDER)] == list(range(1, total + 1))


def test_an_exact_part_leaves_no_empty_one(storage: Storage) -> None:
    report = Progress(storage, FOLDER, "pretrain", "step")
    for step in range(1, progress.PART_LINES + 1):
        report(step, progress.PART_LINES)
    report.flush()
    assert len(storage.names(FOLDER)) == 1


def test_a_later_attempt_goes_on_behind_the_first(storage: Storage) -> None:
    first = Progress(storage, FOLDER, "pretrain", "step")
    first(1, 4)
    first(2, 4)
    first.flush()
    second = Progress(storage, FOLDER, "pretrain", "step")
    second(3, 4)
    second(4, 4)
    assert [event.done for event in events(storage, FOLDER)] == [1, 2, 3, 4]
    assert len(storage.names(FOLDER)) == 2


def test_puts_are_bounded_in_time_but_the_end_is_written(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    puts: list[str] = []
    write = Storage.write

    def counted(self: Storage, name: str, data: bytes) -> None:
        puts.append(name)
        write(self, name, data)

    monkeypatch.setattr(Storage, "write", counted)
    report = Progress(storage, FOLDER, "pretrain", "step")
    for step in range(1, 101):
        report(step, 100)
    assert len(puts) < 10
    assert len(list(events(storage, FOLDER))) == 100


def test_no_events(storage: Storage) -> None:
    assert list(events(storage, FOLDER)) == []
