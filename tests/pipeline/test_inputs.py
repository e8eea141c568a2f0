"""What a recipe names and is not there is refused before a run starts, all of it at once."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from pipeline import artifact, inputs, locations
from pipeline.artifact import Identity, Stage
from pipeline.errors import InputError, RecipeError
from pipeline.recipe import load
from pipeline.storage import Storage
from tests.server import serving

DEMO = "recipes/demo.yaml"
BENCHMARK = {"name": "quiz", "kind": "arc", "file": "quiz.jsonl", "shots": 0, "examples": None, "most": None}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "root")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Common Crawl with one crawl, and a path that refuses for now."""

    class CommonCrawl(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            known = self.path in ("/crawl-data/CC-MAIN-2025-05/warc.paths.gz", "/a.warc.gz")
            self.send_response(503 if "busy" in self.path else 200 if known else 404)
            self.end_headers()

    with serving(CommonCrawl) as address:
        monkeypatch.setenv(locations.BASE_VARIABLE, f"http://{address}")
        yield f"http://{address}"


def refused(storage: Storage, changes: dict[str, Any], *sections: str) -> str:
    """The error that a demo with these changes is refused with."""
    with pytest.raises(InputError) as caught:
        inputs.check(load(DEMO, changes), storage, sections or None)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_the_demo_has_all_it_reads(storage: Storage) -> None:
    assert inputs.check(load(DEMO), storage) == []


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("input.warcs", ["nosuch/*.warc.gz"], "no WARC file matches 'nosuch/*.warc.gz'"),
        ("input.warcs", ["ftp://host/x.warc.gz"], "ftp:// is not read"),
        ("extract.block_list.source", "nosuch/list", "nosuch/list is no folder"),
        ("extract.block_list.categories", ["adult", "/x"], "recipes/blocklists/demo holds no /x/domains"),
        ("extract.block_list.words", ["casino", "file:nosuch.txt"], "nosuch.txt does not exist"),
        ("extract.quality_model", "nosuch.bin", "nosuch.bin does not exist"),
        ("decontaminate.sets", ["docs"], "docs is a folder"),
        ("decontaminate.take_down", ["nosuch.txt"], "nosuch.txt does not exist"),
        ("tokenizer.source", "recipes/blocklists", "recipes/blocklists holds no tokenizer.json"),
        ("deduplicate.against", ["deduplicate/all/0123"], "deduplicate/all/0123 is no artifact"),
        ("deduplicate.against", ["../other"], "'../other' is no path below"),
        ("pretrain.continue_from", "/tmp", "'/tmp' is no path below"),
        ("pretrain.mix", {"shard/all/0123": 0.5}, "shard/all/0123 is no artifact"),
        ("pretrain.continue_from", "_work/pretrain/x/checkpoints/step-9", "step-9 is no complete checkpoint"),
        ("sft.conversations", ["builtin:identity", "talks.jsonl"], "talks.jsonl does not exist"),
        ("sft.conversations", ["builtin:nobody"], "builtin:nobody is none of the project's sets"),
        ("evaluation.benchmarks", [BENCHMARK], "quiz.jsonl (benchmark quiz) does not exist"),
        ("evaluation.benchmarks", [BENCHMARK | {"examples": "e.jsonl"}], "e.jsonl (benchmark quiz) does not exist"),
        ("evaluation.benchmarks", [BENCHMARK | {"file": DEMO}], "(benchmark quiz) does not begin with a line of JSON"),
        ("evaluation.demonstrations", ["builtin:identity_held_out"], "none of the project's sets"),
    ],
)
def test_what_is_missing_is_named_by_key(storage: Storage, key: str, value: Any, what: str) -> None:
    error = refused(storage, {key: value})
    assert error.startswith(key) or error.startswith("extract.block_list: ")
    assert what in error and "\n  -> " in error


def test_names_and_weights_need_their_folders(storage: Storage, tmp_path: Path) -> None:
    people = {"redact.kinds": ["PERSON"], "redact.person_model": str(tmp_path)}
    assert f"redact.person_model: {tmp_path} holds no meta.json" in refused(storage, people)
    (tmp_path / "config.json").write_text("{}")
    weights = {"model.preset": "given", "pretrain.weights": str(tmp_path)}
    assert f"pretrain.weights: {tmp_path} holds no tokenizer.json, no *.safetensors" in refused(storage, weights)


def test_all_is_named_at_once_and_each_remedy_once(storage: Storage) -> None:
    error = refused(storage, {"input.warcs": ["gone.warc"], "sft.conversations": ["a.jsonl", "b.jsonl"]})
    assert error.count("does not exist") == 2 and "gone.warc" in error
    assert error.index("gone.warc") < error.index("a.jsonl") < error.index("b.jsonl")
    assert error.count(f"check the path (working folder: {os.getcwd()})") == 1


def test_only_the_sections_that_a_run_reads_count(storage: Storage) -> None:
    changes = {"input.warcs": ["gone.warc"], "sft.conversations": ["gone.jsonl"]}
    assert "gone.jsonl" not in refused(storage, changes, "extract", "shard")
    assert "gone.warc" not in refused(storage, changes, "pretrain", "sft")


@pytest.mark.parametrize("data", [b"", b"hello\n", b"\x1f\x8bgarbage", b"\xff\xfe", gzip.compress(b"{}")[:-12]])
def test_conversations_that_are_no_json_lines_are_refused(storage: Storage, tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_bytes(data)
    for key in ("sft.conversations", "decontaminate.sets"):
        assert f"{key}: {file} does not begin with a line of JSON" in refused(storage, {key: [str(file)]})
    good = b'\n{"messages": []}\nno JSON\n'  # the stage reads the rest
    for content in (good, gzip.compress(good)):
        file.write_bytes(content)
        assert inputs.check(load(DEMO, {"sft.conversations": [str(file)]}), storage) == []


def test_a_list_is_read_and_what_it_names_is_sought(storage: Storage, tmp_path: Path) -> None:
    listed = tmp_path / "warc.paths.gz"
    listed.write_bytes(gzip.compress(b"gone.warc.gz\n"))
    assert "gone.warc.gz" in refused(storage, {"input.warcs": [str(listed)]})
    listed.write_bytes(b"<html>")
    assert "is a page (XML or HTML)" in refused(storage, {"input.warcs": [str(listed)]})
    (tmp_path / "gone.warc.gz").write_bytes(b"")
    listed.write_bytes(b"gone.warc.gz\n")
    assert inputs.check(load(DEMO, {"input.warcs": [str(listed)]}), storage) == []


def test_a_crawl_that_there_is_not_is_refused(storage: Storage, server: str) -> None:
    def crawl(name: str) -> dict[str, Any]:
        return {"input.warcs": [], "input.crawl": name}

    assert inputs.check(load(DEMO, crawl("CC-MAIN-2025-05")), storage) == []
    error = refused(storage, crawl("CC-MAIN-2025-06"))
    assert f"input.crawl: there is no crawl CC-MAIN-2025-06: {server}/crawl-data/CC-MAIN-2025-06/" in error
    assert "answers 404" in error and "https://index.commoncrawl.org" in error


def test_a_server_that_does_not_answer_refuses_nothing(
    storage: Storage, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Extract asks again and again; and a list that was read before is kept, so that a second run needs no server."""
    busy = load(DEMO, {"input.warcs": [f"{server}/busy.warc.gz", f"{server}/a.warc.gz"]})
    assert inputs.check(busy, storage) == [f"input.warcs: {server}/busy.warc.gz answers 503"]
    monkeypatch.setenv(locations.BASE_VARIABLE, "http://127.0.0.1:9")
    (line,) = inputs.check(load(DEMO, {"input.warcs": [], "input.crawl": "CC-MAIN-2025-05"}), storage)
    assert "cannot be reached" in line
    assert "b.warc.gz: " not in line
    assert f"{server}/b.warc.gz answers 404" in refused(storage, {"input.warcs": [f"{server}/b.warc.gz"]})


@pytest.mark.parametrize(
    "name", ["CC-MAIN-2025", "CC-NEWS", "CC-MAIN-2025-5", "CC-main-2025-05", "CC-MAIN-2025-05/x", "CC-MAIN-2025-05\n"]
)
def test_what_is_no_id_of_a_crawl_is_refused_by_the_recipe(name: str) -> None:
    with pytest.raises(RecipeError, match=r"input\.crawl: no id of a crawl: write it with year and week"):
        load(DEMO, {"input.warcs": [], "input.crawl": name})
    for known in ("CC-MAIN-2025-05", "CC-MAIN-2012", "CC-MAIN-2009-2010"):
        load(DEMO, {"input.warcs": [], "input.crawl": known})


def test_artifacts_and_checkpoints_that_are_there_pass(storage: Storage) -> None:
    building = artifact.start(storage, "other", Identity(Stage("shard", 1), {}, 1, []))
    building.publish([])
    storage.write(f"{building.work}/checkpoints/step-9/{inputs.COMMIT}", b"{}")
    changes = {
        "pretrain.mix": {building.pointer.folder: 0.5},
        "pretrain.continue_from": f"{building.work}/checkpoints/step-9",
    }
    assert inputs.check(load(DEMO, changes), storage) == []
