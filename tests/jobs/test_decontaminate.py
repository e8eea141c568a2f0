"""What leaves after redaction: texts of evaluation sets, and pages taken down; and who holds a page."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from jobs import decontaminate, redact
from jobs.commands import holds
from jobs.decontaminate import ngrams
from jobs.page.take_down import entries, listed, normal_form
from jobs.stage import decisions
from jobs.stage.table import read_rows, write_table
from pipeline import artifact, lines
from pipeline.artifact import Building, Counts, Identity, Published, Stage
from pipeline.errors import InputError
from pipeline.storage import Storage
from tests.jobs.conftest import job
from tokenizer import shards

QUESTION = "A farmer has twelve sheep and sells five of them to his neighbour on a cold Monday morning in March"
PAGES = [
    ("https://a.org/1", "Boats lie close to the wall, and nobody is there to count them before the evening comes."),
    ("https://a.org/2", f"Look here. {QUESTION.upper()}! How many are left?"),
    ("https://b.a.org/3", "Nothing of interest stands on this page, but its host is listed and so it has to go away."),
    ("https://c.org/4", "This page is listed by its own address; the one beside it stays where it is, as it should."),
    ("https://c.org/5", "The page beside it: " + " ".join(QUESTION.split()[:12]) + " is only twelve words of it."),
]


def corpus(root: Path, parts: int = 2) -> list[dict[str, Any]]:
    """What redact would have published."""
    made = job(root)
    rows = [
        {"id": f"{n:032x}", "url": url, "warc": "w", "offset": n, "text": text, "redactions": "{}"}
        for n, (url, text) in enumerate(PAGES)
    ]
    building = artifact.start(made.storage, "test", Identity(redact.STAGE, made.recipe.section("redact"), 1, []))
    assert isinstance(building, Building)
    files = []
    for i in range(parts):
        write_table(made.storage, building.file(f"part-{i:05d}.parquet"), rows[i::parts], redact.SCHEMA)
        files.append(artifact.describe(made.storage, building.pointer.folder, f"part-{i:05d}.parquet", 1))
    building.publish(files, Counts(in_=len(rows), kept=len(rows), dropped={}))
    return rows


def decided(made: Published) -> dict[str, tuple[str, str]]:
    rows = [row for file in made.files(".parquet") for row in read_rows(made.storage, file)]
    return {PAGES[int(row["id"], 16)][0]: (row["reason"], row["detail"]) for row in rows}


@pytest.fixture
def lists(tmp_path: Path) -> dict[str, Any]:
    """An evaluation set and a take-down list."""
    evaluation = tmp_path / "sums.jsonl.gz"
    evaluation.write_bytes(gzip.compress(json.dumps({"question": QUESTION, "more": [{"answer": "7"}]}).encode()))
    down = tmp_path / "down.txt"
    down.write_text(f"# asked for in March\nB.a.org/\nhttps://c.org/4\n{0:032x}\nd.org\n")
    return {"decontaminate.sets": [str(evaluation)], "decontaminate.take_down": [str(down)]}


def test_each_leaves_for_its_reason(tmp_path: Path, spark: Any, lists: dict[str, Any]) -> None:
    corpus(tmp_path)
    made = decontaminate.run(job(tmp_path, lists))
    assert decided(made) == {
        "https://a.org/1": ("taken_down", f"{0:032x}"),
        "https://a.org/2": ("contaminated", "sums.jsonl.gz: 8 n-grams"),
        "https://b.a.org/3": ("taken_down", "b.a.org"),
        "https://c.org/4": ("taken_down", "c.org/4"),
        "https://c.org/5": (None, None),
    }
    numbers = made.content.numbers
    assert (numbers["take_down_entries"], numbers["take_down_unmatched"]) == (4, 1)
    assert made.content.counts == Counts(in_=5, kept=1, dropped={"contaminated": 1, "taken_down": 3})
    for part in decisions.aligned(artifact.of_run(made.storage, "test", "redact"), made):
        assert [row["id"] for row in decisions.kept(made.storage, part, ())] == [
            row["id"] for row in read_rows(made.storage, part.decided) if row["reason"] is None
        ]


def test_a_changed_list_makes_it_again_and_the_same_does_not(tmp_path: Path, spark: Any, lists: dict[str, Any]) -> None:
    corpus(tmp_path)
    first = decontaminate.run(job(tmp_path, lists))
    assert decontaminate.run(job(tmp_path, lists)).folder == first.folder
    Path(lists["decontaminate.take_down"][0]).write_text("a.org\n")
    again = decontaminate.run(job(tmp_path, lists))
    assert again.folder != first.folder
    assert again.content.counts is not None and again.content.counts.dropped["taken_down"] == 3


def test_without_lists_everything_stays(tmp_path: Path, spark: Any) -> None:
    corpus(tmp_path)
    assert {reason for reason, _ in decided(decontaminate.run(job(tmp_path))).values()} == {None}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "x.jsonl"
    broken.write_text('{"a": "b"}\n{"a": \n')
    with pytest.raises(InputError, match=r"x\.jsonl:2: no JSON"):
        list(lines.texts(str(broken), "x"))
    with pytest.raises(InputError, match="nothing"):
        list(lines.texts(str(tmp_path / "nothing.txt"), "x"))
    with pytest.raises(InputError, match="nothing"):
        list(entries(str(tmp_path / "nothing.txt")))


def test_ngrams_see_through_case_and_punctuation_only() -> None:
    assert ngrams("One, two; THREE - four!", 3) == ngrams("one two three four", 3) != ngrams("one two four three", 3)
    assert ngrams("too short", 3) == []


def test_a_host_is_listed_with_all_below_it() -> None:
    row = {"id": "x", "url": "https://www.B.a.org:8080/p?q"}
    assert listed(row, frozenset(["a.org"])) == "a.org"
    assert listed(row, frozenset(["org.a", "ba.org", "www.b.a.org.x"])) is None


@pytest.mark.parametrize(
    ("entry", "url"),
    [
        ("Example.com", "http://example.com/x"),
        ("example.com/", "https://www.example.com/x?y"),
        ("*.example.com", "https://a.example.com/"),
        ("https://Example.com/a", "http://www.example.com/a#top"),
        ("example.com/a", "https://example.com/a/"),
        ("müller.de", "https://xn--mller-kva.de/"),
        ("https://müller.de/ü", "https://xn--mller-kva.de/%C3%BC"),
        ("https://example.com", "https://example.com/"),
        ("example.com:8080", "https://example.com:8080/x"),
        ("0123456789ABCDEF0123456789abcdef", "https://example.com/x"),
    ],
)
def test_an_entry_names_a_document_however_it_is_written(entry: str, url: str) -> None:
    row = {"id": "0123456789abcdef0123456789abcdef", "url": url}
    assert listed(row, frozenset([normal_form(entry)])) == normal_form(entry)
    assert listed({"id": "x", "url": "https://example.org/ax"}, frozenset([normal_form(entry)])) is None


@pytest.mark.parametrize("entry", ["https://example.com/a", "example.com/A", "xample.com", "com.", "/", ""])
def test_an_entry_names_nothing_else(entry: str) -> None:
    for url in ("https://example.com/ab", "https://example.com/", "/archive/a.warc", ""):
        assert listed({"id": "x", "url": url}, frozenset([normal_form(entry)])) in (None, "com")


def test_a_list_may_begin_with_a_bom(tmp_path: Path) -> None:
    (tmp_path / "down.txt").write_text("\ufeffhttps://bad.example/page\n # why\nExample.COM\n", encoding="utf-8")
    assert list(entries(str(tmp_path / "down.txt"))) == ["bad.example/page", "example.com"]


def test_who_holds_a_page(tmp_path: Path, spark: Any, lists: dict[str, Any]) -> None:
    """Shards made before the take-down hold it, and the models that learned from them; those made after do not."""
    rows = corpus(tmp_path)
    storage = Storage(tmp_path)

    def publish(stage: str, inputs: list[Published], tokens: list[dict[str, Any]] | None = None) -> Published:
        building = artifact.start(
            storage, "test", Identity(Stage(stage, 1), {}, len(inputs), [i.as_input() for i in inputs])
        )
        assert isinstance(building, Building)
        name = "train-00000.documents.parquet" if tokens else "model.safetensors"
        if tokens:
            write_table(storage, building.file(name), tokens, shards.SIDECAR)
        else:
            storage.write(building.file(name), b"w")
        return building.publish([artifact.describe(storage, building.pointer.folder, name, 1)])

    texts_of = artifact.of_run(storage, "test", "redact")
    before = publish("shard", [texts_of], rows)
    after = publish("shard", [texts_of, texts_of], rows[4:])
    base, clean = publish("pretrain", [before]), publish("pretrain", [after, after])
    chat = publish("sft", [base])
    building = artifact.start(storage, "test", Identity(Stage("rl", 1), {}, 1, [chat.as_input()]))
    assert isinstance(building, Building)
    storage.write(f"{building.work}/checkpoints/step-00000001/model.pt", b"w")
    lines = list(holds.holding(storage, "https://c.org/4"))
    assert [line.partition(":")[0] for line in lines] == [
        texts_of.folder, before.folder, base.folder, chat.folder, building.work
    ]  # fmt: skip
    assert lines[-1].endswith(f"not finished, 1 checkpoints, trained on {before.folder}")
    assert clean.folder not in "\n".join(lines)
    assert list(holds.holding(storage, "d.org")) == []
    # Of a model that is published its checkpoints are named too; once its shards are removed, that is all there is.
    work = f"_work/pretrain/{base.content.fingerprint}"
    for name in ("step-00000001/model.pt", "step-00000002/model.pt", "step-00000002/optimizer.pt"):
        storage.write(f"{work}/checkpoints/{name}", b"w")
    assert f"{work}: 2 checkpoints, trained on {before.folder}" in list(holds.holding(storage, "C.org/4"))
    storage.remove_tree(before.folder)
    lines = list(holds.holding(storage, "https://c.org/4"))
    unknown = f"made from {before.folder}, removed since: whether it was trained on the page is not known"
    assert [line.partition(": ") for line in lines[1:]] == [
        (base.folder, ": ", unknown),
        (work, ": ", f"2 checkpoints, {unknown}"),
        (chat.folder, ": ", unknown),
        (building.work, ": ", f"not finished, 1 checkpoints, {unknown}"),
    ]
    storage.remove_tree(texts_of.folder)
    assert clean.folder not in "\n".join(holds.holding(storage, "https://c.org/4"))
