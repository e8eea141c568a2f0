"""The life of a stage: open, commit, publish, reuse; what changes a fingerprint, and what is noticed afterwards."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import artifact
from pipeline.artifact import Building, Counts, Identity, Input, Published, Stage
from pipeline.errors import ArtifactError, RecipeError, StageError, StorageError
from pipeline.storage import Storage

STAGE = Stage("extract", 1, ("pyarrow",))
RAW = Input(stage="warc", location="here/a.warc.gz", fingerprint="", content="sha256:1")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "root")


def start(storage: Storage, run: str = "run", **changes: Any) -> Published | Building:
    given: dict[str, Any] = {"stage": STAGE, "recipe": {"kinds": ["a"], "least": 0.5}, "seed": 1, "inputs": [RAW]}
    of_pointer = {key: changes.pop(key) for key in ("name", "force") if key in changes}
    return artifact.start(storage, run, Identity(**(given | changes)), **of_pointer)


def building(storage: Storage, run: str = "run", **changes: Any) -> Building:
    found = start(storage, run, **changes)
    assert isinstance(found, Building)
    return found


def finish(made: Building, data: bytes = b"data", **more: Any) -> Published:
    made.storage.write(made.file("part-0"), data)
    return made.publish([artifact.describe(made.storage, made.pointer.folder, "part-0", 3)], **more)


def pointer(storage: Storage, run: str = "run", name: str = "extract") -> artifact.Pointer:
    found = artifact.pointer(storage, run, name)
    assert found
    return found


def test_open_commit_publish_reuse(storage: Storage) -> None:
    made = building(storage)
    assert pointer(storage).state == "running"
    assert made.commits() == {}
    made.commit("00000", {"rows": 3})
    assert made.commits() == {"00000": {"rows": 3}}
    published = finish(made, counts=Counts(in_=5, kept=3, dropped={"short": 2}), numbers={"share": 0.6})
    assert published.folder == made.pointer.folder == f"extract/all/{published.content.fingerprint}"
    assert published.files() == [f"{published.folder}/part-0"] and published.files(".bin") == []
    assert published.content.numbers == {"share": 0.6}
    assert pointer(storage).state == "published"
    assert pointer(storage).content_hash == published.manifest.content_hash

    again = start(storage, "other")
    assert isinstance(again, Published) and again.manifest == published.manifest
    assert pointer(storage, "other").state == "reused"
    assert artifact.of_run(storage, "other", "extract").folder == published.folder


def test_a_stage_says_at_its_end_what_it_published(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    made = finish(building(storage), counts=Counts(in_=1500, kept=3, dropped={"short": 7, "not_200": 1490}))
    assert capsys.readouterr().out == (
        f"extract: published {storage.path(made.folder)}, 1 files; "
        "1,500 in = 3 kept + 1,497 dropped (1,490 not_200, 7 short)\n"
    )


def test_a_kill_costs_one_part(storage: Storage) -> None:
    first = building(storage)
    first.commit("00000", {"rows": 1})
    storage.write(first.file("part-1"), b"half")  # killed before it was committed
    second = building(storage)
    assert second.work == first.work
    assert list(second.commits()) == ["00000"]
    published = finish(second)
    assert published.manifest.run.attempts == 2
    assert published.files() == [f"{published.folder}/part-0"], "the manifest says what there is, not the folder"


def test_readers_see_nothing_before_the_manifest(storage: Storage) -> None:
    made = building(storage)
    storage.write(made.file("part-0"), b"data")
    with pytest.raises(ArtifactError, match="holds no published artifact"):
        artifact.read(storage, made.pointer.folder)
    with pytest.raises(ArtifactError, match="stage extract did not finish in run 'run'"):
        artifact.of_run(storage, "run", "extract")
    with pytest.raises(ArtifactError, match="stage filter has not run in run 'run'"):
        artifact.of_run(storage, "run", "filter")


@pytest.mark.parametrize("data", [b"Data", b"longer than before", None])
def test_changed_file_is_noticed_and_named(storage: Storage, data: bytes | None) -> None:
    published = finish(building(storage))
    published.verify()
    name = published.file("part-0")
    if data is None:
        storage.remove(name)
    else:
        storage.write(name, data)
    for notices in (published.verify, lambda: start(storage, "next")):
        with pytest.raises(ArtifactError) as caught:
            notices()
        assert storage.path(name) in caught.value.what
        assert "--force" in caught.value.remedy


def test_edited_manifest_is_noticed(storage: Storage) -> None:
    published = finish(building(storage))
    name = published.file(artifact.MANIFEST)
    data = json.loads(storage.read(name))
    data["content"]["seed"] = 7
    storage.write(name, json.dumps(data).encode())
    with pytest.raises(ArtifactError, match=f"{storage.path(name)} was edited"):
        artifact.read(storage, published.folder)
    storage.write(name, b"{")
    with pytest.raises(ArtifactError, match="is no manifest"):
        artifact.read(storage, published.folder)


@pytest.mark.parametrize("path", ["../../x", "/etc/passwd", "a/../../x", "", "a\0b"])
def test_a_manifest_leads_to_no_file_elsewhere(storage: Storage, path: str) -> None:
    """Also one whose hash is right: files of a remote root are copied to the names that it lists."""
    published = finish(building(storage))
    name = published.file(artifact.MANIFEST)
    data = json.loads(storage.read(name))
    data["content"]["files"] = [{"path": path, "bytes": 1, "sha256": "0", "rows": 1}]
    data["content_hash"] = artifact.digest(data["content"])
    storage.write(name, json.dumps(data).encode())
    with pytest.raises(ArtifactError, match="is no path below an artifact"):
        artifact.read(storage, published.folder)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc", "a\0b"])
def test_names_of_stages_runs_and_partitions_lead_nowhere_else(storage: Storage, name: str) -> None:
    finish(building(storage))
    for look in (
        lambda: artifact.pointer(storage, name, "shard"),
        lambda: artifact.pointer(storage, "run", name),
        lambda: artifact.of_run(storage, "run", name),
        lambda: artifact.read(storage, name),
        lambda: artifact.start(storage, name, Identity(STAGE, {}, 1, [])),
        lambda: artifact.start(storage, "run", Identity(STAGE, {}, 1, []), name=name),
        lambda: artifact.start(storage, "run", Identity(STAGE, {"x": 1}, 1, [], partition=name)),
        lambda: artifact.start(storage, "run", Identity(artifact.Stage(name, 1), {}, 1, [])),
    ):
        with pytest.raises(StorageError, match="is no path below"):
            look()


def test_run_part_is_not_hashed(storage: Storage) -> None:
    first = finish(building(storage), run_numbers={"speed": 1.0})
    again = finish(building(storage, force=True), run_numbers={"speed": 2.0})
    assert first.manifest.content_hash == again.manifest.content_hash
    assert first.manifest.run != again.manifest.run


def test_force_makes_it_again_from_nothing(storage: Storage) -> None:
    made = building(storage)
    made.commit("00000", {})
    finish(made)
    forced = building(storage, force=True)
    assert forced.commits() == {}
    assert forced.pointer.folder == made.pointer.folder
    with pytest.raises(ArtifactError, match="did not finish"):
        artifact.of_run(storage, "run", "extract")
    assert finish(forced, b"other").manifest.content_hash != ""
    assert isinstance(start(storage), Published)


def test_one_of_many_publishers_wins_and_all_agree(storage: Storage) -> None:
    many = 8
    started = [building(storage, f"run-{n}") for n in range(many)]
    storage.write(started[0].file("part-0"), b"data")
    files = [artifact.describe(storage, started[0].pointer.folder, "part-0", 3)]
    barrier = threading.Barrier(many)

    def race(made: Building) -> Published:
        barrier.wait()
        return made.publish(files, numbers={"n": 1})

    with ThreadPoolExecutor(many) as pool:
        published = list(pool.map(race, started))
    assert len({one.manifest.model_dump_json() for one in published}) == 1
    assert {pointer(storage, f"run-{n}").content_hash for n in range(many)} == {published[0].manifest.content_hash}
    assert [name for name in storage.names(published[0].folder) if name.endswith(".tmp")] == []


def test_a_loser_that_made_other_bytes_is_told(storage: Storage) -> None:
    first, second = building(storage), building(storage, "other")
    published = finish(first, b"data")
    with pytest.raises(ArtifactError, match="part-0 is not the file that was published"):
        finish(second, b"else")
    assert artifact.read(storage, published.folder).manifest == published.manifest


def test_nothing_may_be_lost(storage: Storage) -> None:
    made = building(storage)
    with pytest.raises(StageError, match="extract: 5 came in, but 3 kept and 1 dropped are accounted for"):
        finish(made, counts=Counts(in_=5, kept=3, dropped={"short": 1}))
    assert not storage.exists(made.file(artifact.MANIFEST))


def test_file_that_was_not_written(storage: Storage) -> None:
    with pytest.raises(StageError, match="gone was not written"):
        artifact.describe(storage, "extract/all/0", "gone", 0)


def test_fingerprints_are_those_of_earlier_releases() -> None:
    """Where one of these values changes, everything that was ever published is made again."""
    number = "0123456789abcdef"
    read = Input(stage="extract", location=f"extract/all/{number}", fingerprint=number, content="c" * 64)
    raw = Input(stage="warc", location="/crawl/a.warc.gz", fingerprint="", content="a.warc.gz:12-34")
    section: dict[str, Any] = {"languages": {"en": 0.65}, "min_quality": None}
    identity = Identity(Stage("filter", 2), section, 1, [read, raw])
    assert identity.fingerprint == "af03b20ea5e0e99c"
    assert replace(identity, assets={"block_list": "ab" * 32}).fingerprint == "d9b665d4ef5f3b73"
    other = replace(identity, partition="de", assets={"block_list": "ab" * 32})
    assert (other.folder, other.work) == ("filter/de/f655747d453d9cd0", "_work/filter/f655747d453d9cd0")


@pytest.mark.parametrize(
    "change",
    [
        {"stage": Stage("extract", 2, ("pyarrow",))},
        {"stage": Stage("extract", 1, ("pyarrow", "pydantic"))},
        {"stage": Stage("filter", 1, ("pyarrow",))},
        {"recipe": {"kinds": ["a"], "least": 0.6}},
        {"recipe": {"kinds": ["a", "b"], "least": 0.5}},
        {"seed": 2},
        {"inputs": []},
        {"inputs": [RAW, RAW]},
        {"inputs": [RAW.model_copy(update={"content": "sha256:2"})]},
        {"inputs": [RAW.model_copy(update={"stage": "list"})]},
        {"partition": "CC-MAIN-2025-05"},
        {"assets": {"words": "1"}},
    ],
    ids=str,
)
def test_every_ingredient_changes_the_fingerprint(storage: Storage, change: dict[str, Any]) -> None:
    assert building(storage).content.fingerprint != building(storage, **change).content.fingerprint


def test_a_librarys_version_changes_the_fingerprint(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    before = building(storage).content.fingerprint
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.1")
    assert building(storage).content.fingerprint != before


@pytest.mark.parametrize(
    "change",
    [
        {"run": "another"},
        {"name": "extract-again"},
        {"recipe": {"least": 0.5, "kinds": ["a"]}},
        {"inputs": [RAW.model_copy(update={"location": "s3://there/a.warc.gz"})]},
        {"assets": {}},
    ],
    ids=str,
)
def test_where_and_who_do_not(storage: Storage, change: dict[str, Any], tmp_path: Path) -> None:
    before = building(storage).content.fingerprint
    assert building(storage, **change).content.fingerprint == before
    assert building(Storage(tmp_path / "elsewhere"), **change).content.fingerprint == before


def test_names_tell_apart_what_runs_twice(storage: Storage) -> None:
    stage = Stage("evaluation", 1)
    first = finish(building(storage, stage=stage, name="evaluation-sft", recipe={"of": "sft"}))
    second = finish(building(storage, stage=stage, name="evaluation-rl", recipe={"of": "rl"}))
    assert artifact.of_run(storage, "run", "evaluation-sft").folder == first.folder
    assert artifact.of_run(storage, "run", "evaluation-rl").folder == second.folder
    assert artifact.pointer(storage, "run", "evaluation") is None


def test_of_run_refuses_another_recipe_and_names_the_settings(storage: Storage) -> None:
    finish(building(storage))
    assert artifact.of_run(storage, "run", "extract", {"kinds": ["a"], "least": 0.5})
    with pytest.raises(
        RecipeError, match=r"stage extract of run 'run' was built with other settings \(least\)"
    ) as caught:
        artifact.of_run(storage, "run", "extract", {"kinds": ["a"], "least": 0.9})
    assert "--run" in caught.value.remedy


def test_lineage_holds_each_once_and_sources_first(storage: Storage) -> None:
    a = finish(building(storage))
    b = finish(building(storage, stage=Stage("filter", 1), inputs=[a.as_input()]))
    c = finish(building(storage, stage=Stage("redact", 1), inputs=[a.as_input(), b.as_input()]))
    d = finish(building(storage, stage=Stage("shard", 1), inputs=[c.as_input(), b.as_input()]))
    assert [one.content.stage for one in artifact.lineage(storage, d)] == ["extract", "filter", "redact", "shard"]
    assert [one.content.stage for one in artifact.lineage(storage, a)] == ["extract"]
    storage.remove_tree(c.folder)
    with pytest.raises(ArtifactError, match=f"{c.folder} holds no published artifact"):
        artifact.lineage(storage, d)
    removed: list[str] = []
    assert [one.content.stage for one in artifact.lineage(storage, d, removed)] == ["extract", "filter", "shard"]
    assert removed == [c.folder]


def test_a_changed_source_makes_another_artifact(storage: Storage) -> None:
    one = finish(building(storage), b"one")
    first = building(storage, stage=Stage("filter", 1), inputs=[one.as_input()])
    two = finish(building(storage, force=True), b"two")
    second = building(storage, stage=Stage("filter", 1), inputs=[two.as_input()])
    assert first.content.fingerprint != second.content.fingerprint


def test_root_that_cannot_be_written_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        start(Storage(tmp_path / "file" / "root"))


def test_manifest_reads_back_equal(storage: Storage) -> None:
    numbers = {"a": 0.1 + 0.2, "b": 1e300, "c": None, "d": [1, 2.0], "e": {"f": "ü\u2028"}, "g": 2**60, "h": True}
    published = finish(building(storage), numbers=numbers)
    assert artifact.read(storage, published.folder).content.numbers == numbers


def test_what_was_discarded_is_made_again_by_its_parts(storage: Storage) -> None:
    made = building(storage)
    storage.write(f"{made.work}/tokens/part-0", b"text")
    for part in ("tokenize-0", "copy-0", "shard-0"):
        made.commit(part, {})
    made.restore("tokens", "tokenize", "copy")
    assert made.committed() == ["copy-0", "shard-0", "tokenize-0"]
    made.discard("tokens")
    assert not storage.names(f"{made.work}/tokens")
    made.restore("tokens", "tokenize", "copy")
    assert made.committed() == ["shard-0"]


def test_commit_by_a_worker_that_holds_the_folder_only(storage: Storage) -> None:
    made = building(storage)
    artifact.commit(storage, made.work, "sign-00001", {"b": 1, "a": 2})
    assert made.commits() == {"sign-00001": {"a": 2, "b": 1}}


def test_time_and_processor_are_measured(storage: Storage) -> None:
    run = finish(building(storage), cpu_seconds=100.0).manifest.run
    assert 100 <= run.cpu_seconds < 160 and 0 <= run.seconds < 60 and run.host


@given(st.text())
def test_run_name_is_one_folder(text: str) -> None:
    name = artifact.run_name(text)
    assert name and "/" not in name and name not in (".", "..")
    assert artifact.run_name(name) == name


def test_run_name_of_airflow() -> None:
    assert artifact.run_name("manual__2026-01-01T00:00:00+00:00") == "manual__2026-01-01T00-00-00-00-00"


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("aü☃\n", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abcd", max_size=3), plain))
def test_digest_does_not_depend_on_key_order(data: dict[str, Any]) -> None:
    assert artifact.digest(data) == artifact.digest(dict(reversed(data.items())))
    assert artifact.digest(data) == artifact.digest(json.loads(json.dumps(data)))
