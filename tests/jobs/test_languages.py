"""A second language beside English, through extract and filter: it has its own limits, English stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from jobs import extract, filter
from jobs.stage.table import read_rows
from pipeline.artifact import Published
from pipeline.command import Job
from pipeline.recipe import load
from pipeline.storage import Storage

SAMPLE = "tests/data/sample/CC-SAMPLE-00000.warc.gz"
BOTH = {
    "extract.languages": {"en": ["the", "be", "to", "of", "and", "that", "have", "with"], "de": ["der", "die", "und"]},
    "filter.languages": {"en": 0.65, "de": 0.8},
}
GERMAN = {"de": {"gopher": {"min_words": 400, "min_alpha_words": 0.6}}}


@pytest.fixture(autouse=True)
def uses_spark(spark: SparkSession) -> None:
    """conftest gives the stages the session of the tests."""


def rows(published: Published) -> dict[str, dict[str, Any]]:
    found = (row for file in published.files(".parquet") for row in read_rows(published.storage, file))
    return {row["id"]: row for row in found}


def test_a_second_language_changes_nothing_of_english_and_has_limits_of_its_own(tmp_path: Path) -> None:
    given = {"input.warcs": [SAMPLE]}

    def made(run: str, **more: Any) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        work = Job(load("recipes/demo.yaml", given | more), Storage(tmp_path), run, [], False)
        return rows(extract.run(work) or pytest.fail("nothing was made")), rows(filter.run(work))

    pages, english = made("one")
    all_pages, common = made("two", **BOTH)
    _, own = made("three", **BOTH, **{"filter.by_language": GERMAN})

    stays = [name for name, row in english.items() if row["reason"] is None]
    assert len(stays) > 40
    languages = {name: row["language"] for name, row in all_pages.items() if row["reason"] is None}
    for name in stays:
        assert all_pages[name] == pages[name] and languages[name] == "en"
    for decided in (common, own):
        left = {name for name, row in decided.items() if row["reason"] is None and languages[name] == "en"}
        assert left == set(stays)

    german = [name for name, language in languages.items() if language == "de"]
    kept, strict = ({name for name in german if some[name]["reason"] is None} for some in (common, own))
    assert kept - strict and strict - kept, "of the German pages some leave by their own limits, and others stay"
    assert {own[name]["reason"] for name in kept - strict} == {"gopher_too_short"}
    assert {common[name]["reason"] for name in strict - kept} == {"gopher_few_letters"}
    assert all(all_pages[name]["language_score"] >= 0.8 for name in kept | strict)
