"""The corpus road on the bundled sample, stage after stage, with real Spark."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jobs import decontaminate, deduplicate, extract, filter, redact, shard, train_tokenizer
from jobs.commands import explain, inspect
from jobs.page.take_down import normal_form
from jobs.stage.table import read_rows
from pipeline import artifact
from pipeline.artifact import Published, Stage
from pipeline.errors import InputError, RecipeError
from pipeline.storage import Storage
from tests.jobs.conftest import SAMPLE, job, of, sharing
from tokenizer.bpe import Tokenizer
from tokenizer.shards import Shard

TRUTH = [json.loads(line) for line in (SAMPLE / "truth.jsonl").read_text().splitlines()]
ROAD = (extract, filter, deduplicate, redact, decontaminate, train_tokenizer, shard)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def road(root: Path, spark: Any) -> dict[str, Published]:
    """All stages, run once."""
    with sharing(spark):
        return {stage.STAGE.name: stage.run(job(root)) for stage in ROAD}


def rows_of(published: Published) -> list[dict[str, Any]]:
    return [row for file in published.files(".parquet") for row in read_rows(published.storage, file)]


def by_url(published: Published) -> dict[str, dict[str, Any]]:
    return {row["url"]: row for row in rows_of(published)}


def test_every_response_ends_in_one_row(road: dict[str, Published]) -> None:
    rows = rows_of(road["extract"])
    assert Counter(row["url"] for row in rows) == Counter(line["url"] for line in TRUTH)
    assert len({row["id"] for row in rows}) == len(rows)
    assert {(row["url"], row["offset"]) for row in rows} == {(line["url"], line["offset"]) for line in TRUTH}


def test_in_is_kept_plus_dropped_and_stages_fit_together(road: dict[str, Published]) -> None:
    came = len(TRUTH)
    for name in ("extract", "filter", "deduplicate", "redact", "decontaminate", "shard"):
        counts = road[name].content.counts
        assert counts is not None
        assert counts.in_ == came
        assert counts.in_ == counts.kept + sum(counts.dropped.values())
        came = counts.kept


def test_what_was_planted_leaves_for_its_reason(road: dict[str, Published]) -> None:
    rows = by_url(road["extract"])
    for kind, reason in (("non_200", "not_200"), ("non_html", "not_html"), ("blocked_domain", "blocked_domain")):
        planted = [line["url"] for line in TRUTH if line.get("planted", {}).get("kind") == kind]
        assert planted
        assert {rows[url]["reason"] for url in planted} == {reason}


def test_english_is_what_stays(road: dict[str, Published]) -> None:
    kept = by_url(road["redact"])
    assert min(row["language_score"] for row in kept.values()) >= 0.65
    languages = {line["url"]: line.get("language") for line in TRUTH}
    assert {languages[url] for url in kept} <= {"en", None}


def test_copies_leave_and_one_of_each_stays(road: dict[str, Published]) -> None:
    decided = {row["id"]: row for row in rows_of(road["deduplicate"])}
    rows = by_url(road["extract"])
    found = Counter[str]()
    for line in TRUTH:
        planted = line.get("planted", {})
        if planted.get("kind") in ("exact_copy", "near_copy_1pct"):
            pair = [decided.get(rows[url]["id"]) for url in (line["url"], planted["original_url"])]
            if None not in pair:
                found[planted["kind"], pair[0]["cluster"] == pair[1]["cluster"]] += 1  # type: ignore[index]
    assert found["exact_copy", False] == 0  # type: ignore[index]
    assert found["exact_copy", True] >= 10  # type: ignore[index]
    assert found["near_copy_1pct", True] > 5 * found["near_copy_1pct", False]  # type: ignore[index]


def test_who_stays_is_told_with_the_size_of_its_cluster(road: dict[str, Published]) -> None:
    rows = rows_of(road["deduplicate"])
    size = Counter(row["cluster"] for row in rows)
    assert {row["id"]: row["cluster_size"] for row in rows} == {
        row["id"]: None if row["reason"] else size[row["id"]] for row in rows
    }
    assert max(size.values()) == road["deduplicate"].content.numbers["largest_cluster"]


def test_personal_data_is_gone_and_decoys_stay(road: dict[str, Published]) -> None:
    kept = by_url(road["redact"])
    seen = Counter[str]()
    for line in TRUTH:
        planted = line.get("planted", {})
        if line["url"] in kept and planted.get("kind") in ("pii", "decoy"):
            seen[planted["kind"]] += 1
            assert (planted["string"] in kept[line["url"]]["text"]) == (planted["kind"] == "decoy"), planted
    assert seen["pii"] >= 15
    assert seen["decoy"] >= 5


def test_every_token_leads_back_to_its_page(road: dict[str, Published]) -> None:
    shards, texts = road["shard"], by_url(road["redact"])
    tokenizer = Tokenizer.from_bytes(shards.storage.read(road["tokenizer"].file("tokenizer.json")))
    seen = 0
    for file in shards.files(".bin"):
        tokens = Shard(Path(shards.storage.path(file))).tokens
        for row in read_rows(shards.storage, file.replace(".bin", ".documents.parquet")):
            ids = tokens[row["start"] : row["start"] + row["tokens"]].tolist()
            assert ids[-1] == tokenizer.end_of_text
            assert tokenizer.decode(ids[:-1]) == texts[row["url"]]["text"]
            seen += 1
    assert seen == len(texts)


def test_the_sample_yields_enough_tokens(road: dict[str, Published]) -> None:
    numbers = road["shard"].content.numbers
    assert numbers["train_tokens"] + numbers["validation_tokens"] >= 300_000


def test_any_page_is_explained(road: dict[str, Published], root: Path) -> None:
    """What explain replays from the archive is what was recorded, to the last step of each page."""
    storage, ends = Storage(root), Counter[str]()
    rows = rows_of(road["extract"])
    reasons = {row["id"]: row["reason"] for name in ("extract", "filter", "deduplicate") for row in rows_of(road[name])}
    chosen = {reasons[row["id"]]: row for row in rows}  # one page of each way to leave, and one that stays
    for reason, row in chosen.items():
        lines = list(explain.explained(storage, "test", row))
        assert not [line for line in lines if "not as recorded" in line]
        assert (
            f"-> dropped: {reason}" in lines[-1]
            if reason
            else "tokens of train-" in lines[-1] or "validation" in lines[-1]
        )
        ends[lines[-1].split(":")[0].strip()] += 1
    assert ends["-> dropped"] >= 9
    cut = rows[0] | {"url": "cut.warc.gz", "offset": -1, "reason": "truncated", "detail": "the file ends"}
    assert list(explain.explained(storage, "test", cut)) == ["cut.warc.gz\n  -> truncated: the file ends"]
    lost = cut | {"offset": 99, "reason": "damaged", "detail": "7 bytes from byte 99 on: no"}
    assert list(explain.explained(storage, "test", lost)) == ["cut.warc.gz\n  -> damaged: 7 bytes from byte 99 on: no"]
    assert artifact.newest_run(storage, "shard") in ("test", "again")


def steps(root: Path, row: dict[str, Any], run: str = "test") -> dict[str, list[str]]:
    """What explain says of a row of extract, by stage, without the scores of extract and filter."""
    found: dict[str, list[str]] = {}
    for line in "\n".join(explain.explained(Storage(root), run, row)).splitlines():
        if not line.startswith(" "):
            stage = line
        else:
            found.setdefault(stage, []).append(" ".join(line.split()))
    return found


def test_a_copy_is_explained_with_what_stayed_for_it(road: dict[str, Published], root: Path) -> None:
    pages = {row["id"]: row for row in rows_of(road["extract"])}
    decided = rows_of(road["deduplicate"])
    for reason, least, most in (("exact_copy", 1.0, 1.0), ("near_copy", 0.6, 1.0)):
        row = next(row for row in decided if row["reason"] == reason)
        told = steps(root, pages[row["id"]])
        assert told["deduplicate"][-1] == f"-> dropped: {reason} of {pages[row['cluster']]['url']}"
        name, similarity = told["deduplicate"][0].rsplit(" ", 1)
        assert name == "similarity to it, estimated"
        assert least <= float(similarity) <= most
        assert ("least of each pair between them 0.7" in told["deduplicate"]) == (reason == "near_copy")
        assert "redact" not in told


def test_what_stays_is_explained_to_its_tokens(road: dict[str, Published], root: Path) -> None:
    pages = {row["id"]: row for row in rows_of(road["extract"])}
    original = next(row for row in rows_of(road["deduplicate"]) if (row["cluster_size"] or 0) > 1)
    told = steps(root, pages[original["id"]])
    assert told["deduplicate"] == [f"-> kept, and {original['cluster_size'] - 1} copies of it dropped"]
    assert told["decontaminate"] == ["-> kept"]
    [document] = [
        row | {"file": file}
        for file in road["shard"].files(".documents.parquet")
        for row in read_rows(road["shard"].storage, file)
        if row["id"] == original["id"]
    ]
    split, shard = document["file"].split("/")[-1].split("-")[0], document["file"].split("/")[-1].split(".")[0]
    assert told["shard"] == [
        f"-> {split}: {document['tokens']:,} tokens of {shard}, from {document['start']:,} on "
        f"(document {document['document']:,})"
    ]
    redacted = next(row for row in rows_of(road["redact"]) if json.loads(row["redactions"]).get("EMAIL"))
    counts, told = json.loads(redacted["redactions"]), steps(root, pages[redacted["id"]])
    assert told["redact"] == [
        *(f"{kind} {count}" for kind, count in counts.items()),
        f"-> {len(redacted['text']):,} characters of text, {sum(counts.values())} places replaced",
    ]


def test_a_run_is_explained_as_far_as_it_came(
    road: dict[str, Published], root: Path, spark: Any, tmp_path: Path
) -> None:
    """What a list took down, what the budget of tokens leaves out, and what was not made yet."""
    pages = {row["id"]: row for row in rows_of(road["extract"])}
    down = rows_of(road["redact"])[0]
    (tmp_path / "down.txt").write_text(down["url"])
    other = {"decontaminate.take_down": [str(tmp_path / "down.txt")], "shard.train_tokens": 5000}
    for stage in (extract, filter, deduplicate):
        stage.run(job(root, other, "less"))
    assert list(steps(root, pages[down["id"]], "less"))[-1] == "deduplicate"
    for stage in (redact, decontaminate, train_tokenizer, shard):
        stage.run(job(root, other, "less"))
    told = steps(root, pages[down["id"]], "less")
    assert told["decontaminate"] == [f"-> dropped: taken_down ({normal_form(down['url'])})"]
    assert "shard" not in told
    made = artifact.of_run(Storage(root), "less", "shard")
    there = {row["id"] for file in made.files(".documents.parquet") for row in read_rows(made.storage, file)}
    missing = next(row for row in rows_of(road["redact"])[1:] if row["id"] not in there)
    assert made.content.counts is not None
    beyond = made.content.counts.dropped["beyond_budget"]
    assert steps(root, pages[missing["id"]], "less")["shard"] == [
        f"-> dropped: beyond_budget, one of {beyond} documents for which shard.train_tokens has no room"
    ]


def test_what_was_recorded_otherwise_is_told_and_followed(
    road: dict[str, Published], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an extractor of today finds no text, the scores and steps that were recorded are still shown."""
    kept = rows_of(road["redact"])[0]["id"]
    row = next(row for row in rows_of(road["extract"]) if row["id"] == kept)
    before = steps(root, row)
    replayed = explain.replayed(row, road["extract"])
    monkeypatch.setattr(explain, "replayed", lambda *_: replayed | {"reason": "no_main_text", "text": None})
    told = steps(root, row)
    assert "-> dropped: no_main_text" in told["extract"]
    assert any(line.startswith("not as recorded: reason, text") for line in told["extract"])
    assert {name: told[name] for name in told if name != "extract"} == {
        name: before[name] for name in before if name != "extract"
    }


def test_an_artifact_is_inspected(road: dict[str, Published]) -> None:
    lines = "\n".join(inspect.summary(road["filter"]))
    counts = road["filter"].content.counts
    assert counts is not None and f"kept {counts.kept:>39,}" in lines
    shown = list(inspect.samples(road["extract"], "not_200", 3, 1))
    assert [line.split()[-1] for line in shown if line.strip().startswith("reason")] == ["not_200"] * 3
    assert (
        shown
        == list(inspect.samples(road["extract"], "not_200", 3, 1))
        != list(inspect.samples(road["extract"], "not_200", 3, 2))
    )
    with pytest.raises(InputError, match="no row with reason"):
        list(inspect.samples(road["extract"], "nonsense", 3, 1))


def test_a_second_run_makes_nothing_again(road: dict[str, Published], root: Path, spark: Any) -> None:
    for stage in ROAD:
        again = stage.run(job(root, run="again"))
        assert again.manifest == road[stage.STAGE.name].manifest
        assert artifact.pointer(again.storage, "again", stage.STAGE.name).state == "reused"  # type: ignore[union-attr]


def test_another_threshold_reruns_only_what_follows(road: dict[str, Published], root: Path, spark: Any) -> None:
    other = {"filter.languages": {"en": 0.9}}
    assert extract.run(job(root, other, "stricter")).folder == road["extract"].folder
    assert filter.run(job(root, other, "stricter")).folder != road["filter"].folder
    with pytest.raises(RecipeError, match="languages"):
        deduplicate.run(job(root, run="stricter"))


def test_the_same_crawl_again_adds_nothing(
    road: dict[str, Published], root: Path, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against its own corpus every document is known, by signatures alone: no other stage is read again."""
    before = road["deduplicate"]
    overrides = {"deduplicate.against": [before.folder]}
    for stage in (extract, filter):
        stage.run(job(root, overrides, "later"))
    made = deduplicate.run(job(root, overrides, "later"))
    assert made.content.counts is not None and before.content.counts is not None
    assert (made.content.counts.in_, made.content.counts.kept) == (before.content.counts.in_, 0)
    assert made.content.numbers["known_before"] == made.content.counts.in_
    kept = next(row["id"] for row in rows_of(before) if row["reason"] is None)
    page = next(page for page in rows_of(road["extract"]) if page["id"] == kept)
    assert steps(root, page, "later")["deduplicate"] == [
        "similarity to it, estimated 1",
        f"-> dropped: exact_copy of {page['url']}",
    ]
    with pytest.raises(RecipeError, match="rows 8, not 4"):
        deduplicate.run(job(root, overrides | {"deduplicate.rows": 4}, "later"))
    monkeypatch.setattr(deduplicate, "STAGE", Stage("deduplicate", deduplicate.STAGE.version + 1))
    with pytest.raises(RecipeError, match="version"):
        deduplicate.run(job(root, overrides, "later"))


def test_no_match_and_no_warc(tmp_path: Path, spark: Any) -> None:
    with pytest.raises(InputError, match=r"nothing\.warc"):
        extract.run(job(tmp_path, {"input.warcs": [f"{tmp_path}/nothing.warc.gz"]}))
    bad = tmp_path / "bad.warc.gz"
    bad.write_bytes(b"this is no archive" * 99)
    with pytest.raises(InputError, match=r"bad\.warc\.gz"):
        extract.run(job(tmp_path / "a", {"input.warcs": [str(bad)]}))
    made = extract.run(job(tmp_path / "b", of([bad, sorted(SAMPLE.glob("*.warc.gz"))[-1]])))
    assert [one["warc"] for one in made.content.numbers["unreadable"]] == [str(bad)]
    assert made.content.counts is not None
    assert made.content.counts.dropped["not_a_warc"] == 1
    assert made.content.counts.kept > 50


def test_a_file_cut_short_yields_what_it_had(tmp_path: Path, spark: Any) -> None:
    good = sorted(SAMPLE.glob("*.warc.gz"))[0].read_bytes()
    cut = tmp_path / "cut.warc.gz"
    cut.write_bytes(good[: len(good) // 2])
    made = extract.run(job(tmp_path, of([cut])))
    counts = made.content.counts
    assert counts is not None
    assert counts.dropped["truncated"] == 1
    assert counts.kept > 30
