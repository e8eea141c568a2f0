"""The canary reads a few files that extract then need not read, and batches add up to the whole stage."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import canary, extract, filter
from jobs.archive import sources
from jobs.stage import parts, session
from pipeline import artifact
from pipeline.artifact import Published
from pipeline.command import Job
from pipeline.errors import InputError, ServerError
from pipeline.progress import events, last_event
from pipeline.recipe import load
from pipeline.storage import Storage
from tests.jobs.conftest import job, of
from tests.jobs.crawl_server import Server

TWO = {"approval.canary_warcs": 2}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The parts that each application works on."""
    seen: list[list[str]] = []
    real = parts.waiting

    def waiting(*given: Any) -> list[tuple[str, str]]:
        left = real(*given)
        seen.append([part.name for part in left])
        return left

    monkeypatch.setattr("jobs.extract.parts.waiting", waiting)
    return seen


@pytest.mark.parametrize(
    ("files", "canaries", "places"),
    [(5, 2, [1, 3]), (5, 1, [2]), (3, 8, [0, 1, 2]), (90_000, 3, [15_000, 45_000, 75_000]), (0, 2, [])],
)
def test_the_files_are_spread(files: int, canaries: int, places: list[int]) -> None:
    assert canary.chosen(files, canaries) == places


def test_it_tells_what_extract_and_filter_will_say_of_its_files(
    tmp_path: Path, spark: Any, read: Any, short: list[Path]
) -> None:
    given = of(short, **TWO)
    made = canary.run(job(tmp_path, given))
    assert sorted({name for names in read for name in names}) == ["00001", "00003"]
    alone = job(tmp_path / "alone", of(short[1:4:2]))
    extracted, filtered = extract.run(alone), filter.run(alone)
    assert extracted and extracted.content.counts and filtered.content.counts
    numbers, counts = made.content.numbers, extracted.content.counts
    assert (numbers["files"], numbers["canary_files"]) == (5, 2)
    assert (numbers["pages"], numbers["kept"]) == (counts.in_, filtered.content.counts.kept)
    assert numbers["dropped"] == counts.dropped | filtered.content.counts.dropped
    assert sum(numbers["languages"].values()) == counts.kept
    assert made.manifest.run.numbers["extract_cpu_seconds"] > 0.1
    again = canary.run(job(tmp_path, given, run="again"))
    assert again.manifest == made.manifest


def test_extract_reads_what_the_canary_left_and_makes_the_same(
    tmp_path: Path, spark: Any, read: Any, short: list[Path], whole: tuple[Published, Published]
) -> None:
    work = job(tmp_path, of(short, **TWO))
    canary.run(work)
    read.clear()
    made = extract.run(work)
    assert read[0] == ["00000", "00002", "00004"]
    assert made and made.manifest.content_hash == whole[0].manifest.content_hash
    assert made.folder == canary.run(work).content.numbers["extract"]


def test_after_extract_the_canary_reads_its_parts(tmp_path: Path, spark: Any, read: Any, short: list[Path]) -> None:
    work = job(tmp_path, of(short, **TWO))
    before = canary.run(replace(work, storage=Storage(tmp_path / "before"))).content.numbers
    extract.run(work)
    read.clear()
    after = canary.run(work)
    assert read == [] and after.content.numbers == before
    assert after.manifest.run.numbers["extract_cpu_seconds"] > 0.1


def test_without_a_canary_the_files_are_counted_and_none_is_read(tmp_path: Path, read: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(session, "spark", lambda name: pytest.fail("no Spark is needed"))
    numbers = canary.run(job(tmp_path)).content.numbers
    assert (numbers["files"], numbers["canary_files"]) == (5, 0)
    assert read == []


def test_batches_make_what_one_application_makes(
    tmp_path: Path, spark: Any, read: Any, short: list[Path], whole: tuple[Published, Published]
) -> None:
    work = job(tmp_path, of(short))
    for number in (3, 1, 2):
        assert extract.run(work, (number, 3)) is None
        pointer = artifact.pointer(work.storage, "test", "extract")
        assert pointer and artifact.is_committed(work.storage, pointer.work, f"batch-{number}-of-3")
    assert [one for one in read if one][::2] == [["00003", "00004"], ["00000"], ["00001", "00002"]]
    assert pointer.state == "running"
    streams = {name.rpartition("-")[0] for name in work.storage.names(f"{pointer.work}/progress")}
    assert len(streams) == 3
    told = [(event.done, event.total) for event in events(work.storage, f"{pointer.work}/progress")]
    assert (1, 1) in told and (2, 2) in told
    read.clear()
    made = extract.run(work)
    assert read[0] == []
    assert made and made.manifest.content_hash == whole[0].manifest.content_hash
    assert made.manifest.run.attempts == 4
    last = last_event(work.storage, f"{pointer.work}/progress")
    assert last and (last.done, last.total) == (5, 5)


def test_a_server_is_asked_for_the_files_of_a_crawl_once_a_run(
    tmp_path: Path, spark: Any, server: Server, short: list[Path]
) -> None:
    paths = [f"crawl-data/CC-MAIN-2025-05/{file.name}" for file in short]
    server.files = {f"/{path}": file.read_bytes() for path, file in zip(paths, short, strict=True)}
    server.files["/crawl-data/CC-MAIN-2025-05/warc.paths.gz"] = gzip.compress("\n".join(paths).encode())
    crawl = {"input.warcs": [], "input.crawl": "CC-MAIN-2025-05", **TWO}
    work = Job(load("recipes/demo.yaml", crawl), Storage(tmp_path), "test", [], False)
    canary.run(work)
    assert len(server.seen) == 1 + 5 + 2  # the list, each file's size, and two files
    extract.run(work, (1, 2))
    made = extract.run(work)
    assert len(server.seen) == 1 + 5 + 5 and made
    alone = extract.run(replace(work, storage=Storage(tmp_path / "alone")))
    assert len(server.seen) == 2 * (1 + 5 + 5)
    assert alone and alone.manifest.content == made.manifest.content
    fewer = load("recipes/demo.yaml", crawl | {"input.max_warcs": 3})
    assert len(extract.listed(replace(work, recipe=fewer))) == 3


@pytest.mark.parametrize("given", ["--batch 0/3", "--batch 4/3", "--batch 3", "--batch 1/2 --force"])
def test_a_batch_that_is_none_is_refused(given: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["extract.py", "--recipe", "recipes/demo.yaml", "--root", "x", *given.split()])
    with pytest.raises(SystemExit) as told:
        extract.main()
    assert told.value.code == 2
    assert "--batch" in capsys.readouterr().err


def test_a_server_that_refuses_for_now_is_told_from_one_that_knows_nothing(
    tmp_path: Path, spark: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hurried(extract.Extraction):
        """In Spark's worker, whose waits the patch of `server` does not shorten."""

        def work(self, part: extract.Warc) -> Iterator[dict[str, Any]]:
            longest, sources._LONGEST_WAIT = sources._LONGEST_WAIT, 0.01
            try:
                yield from super().work(part)
            finally:
                sources._LONGEST_WAIT = longest

    monkeypatch.setattr(extract, "Extraction", Hurried)
    for path, weather, kind in (("/a.warc.gz", "503", ServerError), ("/b.warc.gz", "404", InputError)):
        server.files[path], server.weather = b"", lambda weather=weather: weather  # type: ignore[misc]
        recipe = load("recipes/demo.yaml", {"input.warcs": [server.base + path]})
        with pytest.raises(InputError) as told:
            extract.run(Job(recipe, Storage(tmp_path), "test", [], False))
        assert type(told.value) is kind


def test_a_pattern_that_matches_no_file_is_recorded_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["canary", "--recipe", "recipes/demo.yaml", "--root", str(tmp_path), "--run", "one"]
    monkeypatch.setattr(sys, "argv", [*command, "--input", f"{tmp_path}/*.warc.gz"])
    with pytest.raises(InputError) as raised:
        canary.main()
    pointer = artifact.pointer(Storage(tmp_path), "one", "canary")
    assert pointer and (pointer.error, pointer.remedy) == (raised.value.what, raised.value.remedy)
