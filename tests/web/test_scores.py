"""The scores of documents beside the recipe's thresholds: as histograms, and on each example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.page import quality
from jobs.page.words import words
from pipeline.artifact import Counts, Published
from pipeline.recipe import Filter, load
from pipeline.storage import Storage
from tests.web import test_report
from tests.web.small_run import opened, page_id, table
from web import report
from web.report import documents, scores

RECIPE = load("recipes/demo.yaml")
SENTENCE = "The house with a {} stands at the end of the road, and people have been living in it to this day. "
COLOURS = ("red", "white", "green", "blue", "black", "brown", "grey", "pink")


def row(n: int, text: str | None, language: str = "en") -> dict[str, Any]:
    known = {"id": page_id(n), "url": f"http://a.example/{n}", "title": f"Page {n}", "text": text, "reason": None}
    if text is None:
        return known | {"reason": "not_200"}
    split = words(text)
    measured = quality.scores(text, split, RECIPE.extract.languages["en"], RECIPE.extract.c4_lines)
    return known | {"language": language, "language_score": 0.9, "license": None, "quality": None} | measured


def rows() -> list[dict[str, Any]]:
    """Ten pages of sentences, one that is too short, one that repeats itself, one without text."""
    texts = ["\n".join(SENTENCE.format(f"{colour} {n} door") for colour in COLOURS) for n in range(10)]
    return [row(n, text) for n, text in enumerate([*texts, "Too short to have it all.", SENTENCE * 30, None])]


def corpus(storage: Storage, recipe: Filter, pages: list[dict[str, Any]]) -> dict[str, Published]:
    building = opened(storage, "extract", [])
    with_text = [page for page in pages if page["reason"] is None]
    counts = Counts(in_=len(pages), kept=len(with_text), dropped={"not_200": len(pages) - len(with_text)})
    extract = building.publish(table(building, pages), counts)
    decided = [{"id": page["id"], "reason": quality.decide(page, recipe)} for page in with_text]
    dropped = [str(one["reason"]) for one in decided if one["reason"]]
    building = opened(storage, "filter", [extract], recipe.model_dump(mode="json"))
    counts = Counts(
        in_=len(decided),
        kept=len(decided) - len(dropped),
        dropped={reason: dropped.count(reason) for reason in dropped},
    )
    return {"extract": extract, "filter": building.publish(table(building, decided), counts)}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "root")


def test_every_rule_with_a_number_is_drawn_with_its_threshold(storage: Storage) -> None:
    pages = rows()
    sampled, drawn = scores.histograms(corpus(storage, RECIPE.filter, pages))
    assert sampled == 12, "the page without text has no scores"
    by_name = {score.name: score for score in drawn}
    assert by_name["words"].limits == ["at least 50", "at most 100,000"]
    assert by_name["words"].beyond == [("gopher_too_short", 1, pytest.approx(1 / 12)), ("gopher_too_long", 0, 0)]
    assert by_name["duplicate_5gram_chars"].limits == ["at most 0.15"]
    assert "12 values" in by_name["words"].picture, "a document is counted once, though words have two limits"
    rules = {check.score for check in quality.checks(pages[0], RECIPE.filter) if type(check.limit) in (int, float)}
    assert by_name.keys() == rules


def test_a_document_shows_what_it_is_beyond_and_by_how_much(storage: Storage) -> None:
    pages = rows()
    stages = corpus(storage, RECIPE.filter, pages)
    short = next(group for group in documents.groups(stages) if group.reason == "gopher_too_short").documents[0]
    assert short.scores[0] == documents.Score("words", 6, "at least 50, at most 100,000", True)
    assert not any(score.name in ("detected", "languages", "text") for score in short.scores)
    text = test_report.words(report.render(report.opened(storage, "small")))
    assert "words 6, at least 50, at most 100,000" in text
    assert "How 12 documents with text score on the rules of the filter." in text


def test_a_language_with_limits_of_its_own_is_named(storage: Storage) -> None:
    of_german = RECIPE.filter.model_dump() | {
        "languages": {"en": 0.65, "de": 0.65},
        "by_language": {"de": {"gopher": {"max_mean_word_length": 15}}},
    }
    pages = [*rows(), row(20, SENTENCE * 2, "de")]
    _, drawn = scores.histograms(corpus(storage, Filter.model_validate(of_german), pages))
    by_name = {score.name: score.limits for score in drawn}
    assert by_name["mean_word_length"] == ["at least 3", "at most 10 (en)", "at most 15 (de)"]
    assert by_name["words"] == ["at least 50", "at most 100,000"]


def test_a_large_corpus_is_sampled_by_id(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "DOCUMENTS", 5)
    pages = rows()
    stages = corpus(storage, RECIPE.filter, [*pages[5:12], *pages[:5], pages[12]])
    assert [one["id"] for one in scores._sample(stages["extract"])] == [page_id(n) for n in range(5)]
    text = test_report.words(report.render(report.opened(storage, "small")))
    assert "How 5 documents with text score on the rules of the filter, a random sample of 12." in text


def test_artifacts_of_another_version_have_no_histograms(storage: Storage) -> None:
    stages = corpus(storage, RECIPE.filter, rows())
    older = [{key: value for key, value in page.items() if key != "alpha_words"} for page in rows()]
    building = opened(storage, "extract", [], {"of": "an older version"})
    stages["extract"] = building.publish(table(building, older), Counts(in_=13, kept=12, dropped={"not_200": 1}))
    assert scores.histograms(stages) == (12, []), "no such column"
    assert scores.histograms({"extract": stages["extract"]}) == (0, [])
    assert scores.histograms({"extract": stages["extract"], "filter": stages["extract"]}) == (0, [])
    assert "Scores and thresholds" not in report.render(report.opened(storage, "small"))
