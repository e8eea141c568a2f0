"""extract and filter through Spark on the shared crawl: every response in exactly one row, every planted case right."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from jobs import extract, filter
from jobs.page import charset
from jobs.stage import session
from jobs.stage.table import read_rows
from pipeline import artifact
from pipeline.artifact import Published
from pipeline.command import Job
from pipeline.errors import InputError
from pipeline.recipe import Recipe, load
from pipeline.storage import Storage
from tests.jobs.conftest import sharing

REPOSITORY = Path(__file__).parents[2]
CRAWL = REPOSITORY.parent / "shared" / "data" / "crawl"
WARCS = REPOSITORY.parent / "shared" / "data" / "warc"
pytestmark = pytest.mark.skipif(not CRAWL.exists(), reason="the shared crawl is not beside this repository")


@pytest.fixture(autouse=True)
def uses_spark(spark: SparkSession) -> None:
    """Every test here runs stages: conftest gives them the session of the tests."""


@pytest.fixture(scope="module")
def truth() -> list[dict[str, Any]]:
    with gzip.open(CRAWL / "truth.jsonl.gz", "rt") as stream:
        return [json.loads(line) for line in stream]


def job(root: Path, recipe: Recipe, force: bool = False) -> Job:
    return Job(recipe, Storage(root), "test", [], force)


def recipe(warcs: list[str], **overrides: Any) -> Recipe:
    return load(REPOSITORY / "recipes" / "demo.yaml", {"input.warcs": warcs, **overrides})


@pytest.fixture(scope="module")
def extracted(
    tmp_path_factory: pytest.TempPathFactory, truth: list[dict[str, Any]], spark: SparkSession
) -> tuple[Job, Published]:
    root = tmp_path_factory.mktemp("root")
    listed = root / "blocked" / "planted"
    listed.mkdir(parents=True)
    (listed / "domains").write_text("\n".join({t["ut1_domain"] for t in truth if t.get("ut1_domain")}))
    work = job(
        root,
        recipe(
            [str(CRAWL / "warc.paths")],
            **{"extract.block_list.source": str(root / "blocked"), "extract.block_list.words": []},
        ),
    )
    with sharing(spark):
        return work, extract.run(work)


def rows_of(published: Published) -> list[dict[str, Any]]:
    return [row for file in published.files(".parquet") for row in read_rows(published.storage, file)]


def test_every_response_is_one_row_and_planted_cases_have_their_reason(
    extracted: tuple[Job, Published], truth: list[dict[str, Any]]
) -> None:
    _, published = extracted
    rows = rows_of(published)
    at = {(row["warc"], row["offset"]): row for row in rows}
    assert len(rows) == len(at) == len({row["id"] for row in rows}) == len(truth) == 2436
    assert set(at) == {(t["part"], t["offset"]) for t in truth}
    for t in truth:
        row, kind = at[t["part"], t["offset"]], (t["planted"] or {}).get("kind")
        assert (row["url"], row["status"]) == (t["url"], t["status"])
        assert (row["text"] is None) == (row["reason"] is not None) == (row["words"] is None)
        if kind == "non_200":
            assert row["reason"] == "not_200"
        elif kind == "non_html":
            assert row["reason"] == "not_html"
        elif t.get("ut1_domain"):
            assert row["reason"] == "blocked_domain", t["url"]
        else:
            assert row["reason"] in (None, "language_gate", "no_main_text"), row["detail"]
        if kind in ("pii", "decoy"):
            assert row["reason"] is None
        for item in (t["planted"] or {}).get("items", []) if kind == "pii" else []:
            assert item["value"] in row["text"]


def test_the_charset_of_a_page_is_the_one_it_was_written_in(
    extracted: tuple[Job, Published], truth: list[dict[str, Any]]
) -> None:
    rows = {(row["warc"], row["offset"]): row for row in rows_of(extracted[1])}
    read = [(t, rows[t["part"], t["offset"]]["charset"]) for t in truth if t.get("charset")]
    read = [(t, name) for t, name in read if name is not None]  # what left before it was decoded has none
    other = [(t["url"], t["charset"], name) for t, name in read if charset.codec(t["charset"]) != name]
    print(*other, sep="\n")
    assert len(read) > 1500 and len(other) <= 0.05 * len(read)


def test_in_is_kept_and_dropped_and_the_manifest_counts_the_rows(extracted: tuple[Job, Published]) -> None:
    _, published = extracted
    reasons = Counter(row["reason"] for row in rows_of(published))
    counts = published.content.counts
    assert counts is not None
    assert counts.kept == reasons.pop(None) and counts.dropped == reasons and counts.in_ == 2436
    assert published.content.numbers["other_records"] == {"metadata": 2436, "request": 2436, "warcinfo": 8}
    assert [file.path for file in published.content.files] == [f"part-{n:05d}.parquet" for n in range(8)]


def test_the_gate_loses_no_english_page(extracted: tuple[Job, Published], truth: list[dict[str, Any]]) -> None:
    rows = {(row["warc"], row["offset"]): row for row in rows_of(extracted[1])}
    english = [t for t in truth if t.get("lid") == "en" and t["lid_p"] >= 0.65]
    assert not [t["url"] for t in english if rows[t["part"], t["offset"]]["reason"] == "language_gate"]


def test_a_published_stage_starts_no_spark(extracted: tuple[Job, Published], monkeypatch: pytest.MonkeyPatch) -> None:
    work, published = extracted
    monkeypatch.setattr(session, "spark", lambda _name: pytest.fail("a session was made"))
    assert extract.run(work).manifest == published.manifest


def test_filter_decides_for_what_extract_kept_in_its_order(extracted: tuple[Job, Published]) -> None:
    work, published = extracted
    decided = filter.run(work)
    kept = [row["id"] for row in rows_of(published) if row["reason"] is None]
    rows = rows_of(decided)
    assert [row["id"] for row in rows] == kept
    counts = decided.content.counts
    assert counts is not None and counts.in_ == len(kept)
    assert counts.kept == sum(row["reason"] is None for row in rows) > 700
    low = {
        row["id"] for row in rows_of(published) if row["language_score"] is not None and row["language_score"] < 0.65
    }
    assert low and low == {row["id"] for row in rows if row["reason"] == "other_language"}


def test_a_changed_threshold_leaves_extract_as_it_is(extracted: tuple[Job, Published]) -> None:
    work, _ = extracted
    strict = load(
        REPOSITORY / "recipes" / "demo.yaml",
        {
            "input.warcs": work.recipe.input.warcs,
            "extract.block_list.source": work.recipe.extract.block_list.source,
            "extract.block_list.words": [],
            "filter.gopher.min_words": 100_000,
        },
    )
    counts = filter.run(Job(strict, work.storage, "test", [], False)).content.counts
    assert counts is not None and counts.kept == 0


def test_bytes_do_not_change_when_a_part_is_made_again(tmp_path: Path, short: list[Path]) -> None:
    work = recipe([str(short[0])])
    first = extract.run(job(tmp_path / "a", work))
    second = extract.run(job(tmp_path / "b", work))
    again = extract.run(job(tmp_path / "a", work, force=True))
    assert first.content.files == second.content.files == again.content.files


def test_a_committed_part_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = job(tmp_path, recipe([str(WARCS / "webrecorder+warcio" / "example.warc.gz")]))
    first = extract.run(work)
    Storage(tmp_path).remove(f"{first.folder}/{artifact.MANIFEST}")  # as if killed before it was published
    monkeypatch.setattr("jobs.stage.session.spark", lambda _name: pytest.fail("worked again"))
    assert extract.run(work).content.files == first.content.files


def test_a_file_that_is_no_warc_costs_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    bad = tmp_path / "error.warc.gz"
    bad.write_bytes(b'<?xml version="1.0"?><Error><Code>SlowDown</Code></Error>')
    good = WARCS / "webrecorder+warcio" / "example.warc.gz"
    published = extract.run(job(tmp_path / "root", recipe([str(bad), str(good)])))
    assert [(row["warc"], row["reason"]) for row in rows_of(published) if row["offset"] < 0] == [
        ("error.warc.gz", "not_a_warc")
    ]
    assert [one["reason"] for one in published.content.numbers["unreadable"]] == ["not_a_warc"]
    assert published.content.counts is not None and published.content.counts.in_ == 2


def test_nothing_but_files_that_are_no_warc_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<!doctype html><html></html>")
    with pytest.raises(InputError, match=r"page\.html"):
        extract.run(job(tmp_path / "root", recipe([str(tmp_path / "page.html")])))
