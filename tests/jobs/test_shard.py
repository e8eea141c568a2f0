"""Shards hold every document once, in an order that (seed, id) alone decides."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import decontaminate, redact, shard, train_tokenizer
from jobs.stage.table import read_rows, write_table
from pipeline import artifact, command
from pipeline.artifact import Building, Counts, Identity, Published
from pipeline.errors import RecipeError
from pipeline.storage import Storage
from tests.jobs.conftest import job
from tokenizer import bpe
from tokenizer.chat import SPECIAL_TOKENS
from tokenizer.shards import Shard

TEXTS = [f"Document {i} says: " + " ".join(str(i * j) for j in range(i % 60)) for i in range(400)]
SOURCE = bpe.train(TEXTS[:50], 600, "qwen2")
OVERRIDES = {"shard.shard_tokens": 10_000, "shard.validation": 0.1}


def documents() -> list[dict[str, Any]]:
    rows = [{"id": f"{i:032x}", "url": f"https://a.org/{i}", "warc": "w", "offset": i} for i in range(len(TEXTS))]
    return [row | {"text": text, "redactions": "{}"} for row, text in zip(rows, TEXTS, strict=True)]


def published(building: Published | Building) -> Building:
    assert isinstance(building, Building)
    return building


def corpus(root: Path, rows: list[dict[str, Any]], parts: int) -> None:
    """What redact and the tokenizer stage would have published, the documents in so many parts."""
    made = job(root, OVERRIDES)
    building = published(
        artifact.start(made.storage, "test", Identity(redact.STAGE, made.recipe.section("redact"), 1, []))
    )
    files = []
    for i in range(parts):
        write_table(made.storage, building.file(f"part-{i:05d}.parquet"), rows[i::parts], redact.SCHEMA)
        files.append(
            artifact.describe(made.storage, building.pointer.folder, f"part-{i:05d}.parquet", len(rows[i::parts]))
        )
    source = building.publish(files, Counts(in_=len(rows), kept=len(rows), dropped={}))
    decided = decontaminate.run(made)
    assert decided.content.counts is not None and decided.content.counts.kept == len(rows)
    building = published(
        artifact.start(
            made.storage,
            "test",
            Identity(train_tokenizer.STAGE, command.settings(made.recipe, "tokenizer"), 1, [source.as_input()]),
        )
    )
    train_tokenizer.publish(building, SOURCE, 512, {}, {}, 0.0)


def sharded(root: Path, rows: list[dict[str, Any]], parts: int, **changed: Any) -> Published:
    corpus(root, rows, parts)
    return shard.run(job(root, OVERRIDES | {f"shard.{name}": value for name, value in changed.items()}))


def contents(made: Published, split: str = "train") -> list[tuple[str, list[int]]]:
    """(document id, tokens) of a split, shard after shard."""
    found = []
    for file in made.files(".bin"):
        if f"/{split}-" in file:
            tokens = Shard(Path(made.storage.path(file))).tokens
            for row in read_rows(made.storage, file.replace(".bin", ".documents.parquet")):
                found.append((row["id"], tokens[row["start"] : row["start"] + row["tokens"]].tolist()))
    return found


def test_every_document_is_in_one_shard_and_reads_back(spark: Any, tmp_path: Path) -> None:
    made = sharded(tmp_path, documents(), 3)
    encoder = bpe.Tokenizer.from_bytes(SOURCE)
    seen: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for file in made.files(".bin"):
        name = file.rsplit("/", 1)[1].removesuffix(".bin")
        split, number = name.rsplit("-", 1)
        held = Shard(Path(made.storage.path(file)))
        rows = list(read_rows(made.storage, file.replace(".bin", ".documents.parquet")))
        assert held.sizes.tolist() == [row["tokens"] for row in rows]
        keys = []
        for at, row in enumerate(rows):
            i = int(row["id"], 16)
            ids = held.tokens[row["start"] : row["start"] + row["tokens"]].tolist()
            assert ids == [*encoder.encode(TEXTS[i]), encoder.end_of_text]
            assert (row["document"], row["url"], row["offset"]) == (at, f"https://a.org/{i}", i)
            assert row["bytes"] == len(TEXTS[i].encode())
            key, of = shard.place(1, row["id"], 0.1)
            count = sum(f.endswith(".bin") and f"/{split}-" in f for f in made.files())
            assert (of, shard.shard_of(key, count)) == (split, int(number))
            keys.append(key)
            seen[row["id"]] += 1
        assert keys == sorted(keys)
        totals[f"{split}_tokens"] += len(held.tokens)
        totals[f"{split}_documents"] += len(rows)
        totals[f"{split}_bytes"] += sum(row["bytes"] for row in rows)
    assert seen == Counter(row["id"] for row in documents())
    numbers = made.content.numbers
    assert {name: numbers[name] for name in totals} == totals
    assert numbers["shards"] == len(made.files(".bin")) >= 3
    assert numbers["tokenizer"] == encoder.sha256
    assert numbers["dtype"] == "uint16"
    work = [name for name in made.storage.names("_work/shard") if "/tokens/" in name]
    assert not work, "tokens are the text of pages: they do not outlive the stage"


def test_neither_parts_nor_order_change_a_byte(spark: Any, tmp_path: Path) -> None:
    rows = documents()
    first = sharded(tmp_path / "a", rows, 1)
    random.Random(0).shuffle(rows)
    again = sharded(tmp_path / "b", rows, 7)
    assert [(f.path, f.sha256) for f in first.content.files] == [(f.path, f.sha256) for f in again.content.files]
    assert first.content.numbers == again.content.numbers


def test_a_budget_is_met_to_the_token_by_the_first_documents(spark: Any, tmp_path: Path) -> None:
    all_of_it = sharded(tmp_path / "whole", documents(), 2)
    whole = contents(all_of_it)
    order = sorted(whole, key=lambda pair: shard.place(1, pair[0], 0.1)[0])
    for budget in (1, 5_000, 12_345):
        made = sharded(tmp_path / str(budget), documents(), 3, train_tokens=budget)
        found = contents(made)
        assert made.content.numbers["train_tokens"] == sum(len(ids) for _, ids in found) == budget
        assert found[:-1] == order[: len(found) - 1]
        assert found[-1][1] == order[len(found) - 1][1][: len(found[-1][1])]
        counts = made.content.counts
        assert counts is not None and counts.dropped["beyond_budget"] == len(whole) - len(found)
        assert contents(made, "validation") == contents(all_of_it, "validation")


def test_a_corpus_too_small_is_repeated_in_another_order(spark: Any, tmp_path: Path) -> None:
    once = sharded(tmp_path / "once", documents(), 2)
    held = once.content.numbers["train_tokens"]
    made = sharded(tmp_path / "more", documents(), 3, train_tokens=held * 5 // 2)
    found, times = contents(made), Counter(name for name, _ in contents(made))
    assert sum(len(ids) for _, ids in found) == held * 5 // 2
    assert set(times.values()) == {2, 3} and set(times) == {name for name, _ in contents(once)}
    assert made.content.numbers["corpora"] == {"own": {"tokens": held * 5 // 2, "epochs": 2.5}}
    again = sharded(tmp_path / "again", documents(), 1, train_tokens=held * 5 // 2)
    assert [f.sha256 for f in again.content.files] == [f.sha256 for f in made.content.files]
    with pytest.raises(RecipeError, match="asked for, and it holds"):
        sharded(tmp_path / "most", documents(), 1, train_tokens=held * 5)


def test_corpora_are_mixed_by_their_shares(spark: Any, tmp_path: Path) -> None:
    other = [row | {"id": f"f{row['id'][1:]}", "url": f"{row['url']}/other"} for row in documents()[:200]]
    made = job(tmp_path, OVERRIDES, "other")
    building = published(
        artifact.start(made.storage, "other", Identity(redact.STAGE, made.recipe.section("redact"), 2, []))
    )
    write_table(made.storage, building.file("part-00000.parquet"), other, redact.SCHEMA)
    building.publish(
        [artifact.describe(made.storage, building.pointer.folder, "part-00000.parquet", len(other))],
        Counts(in_=len(other), kept=len(other), dropped={}),
    )
    theirs = decontaminate.run(made)
    mixed = sharded(tmp_path, documents(), 2, train_tokens=10_001, mix={theirs.folder: 0.3})
    tokens = Counter[bool]()
    for name, ids in contents(mixed):
        tokens[name.startswith("f")] += len(ids)
    assert tokens == {True: 3_000, False: 7_001}
    assert mixed.content.numbers["corpora"][theirs.folder]["tokens"] == 3_000
    wrong = OVERRIDES | {"shard.mix": {building.pointer.folder: 0.3}}
    with pytest.raises(RecipeError, match=r"shard\.mix: redact/"):
        shard.run(job(tmp_path, wrong | {"shard.train_tokens": 10_001}))
    with pytest.raises(RecipeError, match="mix needs train_tokens"):
        job(tmp_path, wrong)


def test_a_kill_costs_one_part(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after tokenizing: the second attempt tokenizes nothing again and ends in the same bytes."""
    whole = sharded(tmp_path / "whole", documents(), 3)
    corpus(tmp_path / "killed", documents(), 3)

    class Killed(Exception):
        pass

    def killed(*_: Any) -> Any:
        raise Killed

    assemble = shard.assemble
    monkeypatch.setattr(shard, "assemble", killed)
    with pytest.raises(Killed):
        shard.run(job(tmp_path / "killed", OVERRIDES))
    monkeypatch.setattr(shard, "assemble", assemble)
    storage = Storage(tmp_path / "killed")
    commits = [name for name in storage.names("_work/shard") if "/commits/" in name]
    before = {name: storage.read(name) for name in commits}
    assert len(before) == 3
    made = shard.run(job(tmp_path / "killed", OVERRIDES))
    assert {name: storage.read(name) for name in commits} == before
    assert [f.sha256 for f in made.content.files] == [f.sha256 for f in whole.content.files]
    assert made.manifest.run.attempts == 2


def test_of_the_shards_only_those_are_made_that_are_not_there(spark: Any, tmp_path: Path) -> None:
    made = sharded(tmp_path, documents(), 3)
    lost, *others = [Path(made.storage.path(file)) for file in made.files(".bin")]
    written = {file: file.stat().st_mtime_ns for file in others}
    commit = next(tmp_path.glob(f"_work/shard/*/commits/shard-{lost.stem}.json"))
    for file in (lost, commit, Path(made.storage.path(made.file("manifest.json")))):
        file.unlink()
    again = shard.run(job(tmp_path, OVERRIDES))
    assert again.manifest.content_hash == made.manifest.content_hash
    assert {file: file.stat().st_mtime_ns for file in others} == written
    again.verify()


@given(key=st.integers(0, 2**128 - 1), bits=st.integers(0, 16))
def test_a_shard_is_the_leading_bits_of_the_key(key: int, bits: int) -> None:
    number = shard.shard_of(f"{key:032x}", 1 << bits)
    assert number == key >> (128 - bits)


def test_shards_and_splits_are_even() -> None:
    placed = [shard.place(1, f"{i:032x}", 0.05) for i in range(20_000)]
    of_split = Counter(split for _, split in placed)
    assert 870 < of_split["validation"] < 1130  # binomial(20000, 0.05): 1000, sigma 31
    counts = Counter(shard.shard_of(key, 16) for key, _ in placed)
    assert len(counts) == 16 and min(counts.values()) > 1080 and max(counts.values()) < 1420  # 1250, sigma 34
    held = Counter(shard.shard_of(key, 16) for key, split in placed if split == "validation")
    assert min(held.values()) > 25  # the split does not follow the shard: 62, sigma 7.6
    assert [split for _, split in placed] != [shard.place(2, f"{i:032x}", 0.05)[1] for i in range(20_000)]


def test_the_sample_of_the_tokenizer_does_not_depend_on_parts(spark: Any, tmp_path: Path) -> None:
    rows = documents()
    found = []
    for parts in (1, 4):
        corpus(tmp_path / str(parts), rows, parts)
        made = train_tokenizer.run(
            job(tmp_path / str(parts), {"tokenizer.sample_bytes": 20_000, "tokenizer.vocabulary": 700})
        )
        source = made.storage.read(made.file("tokenizer.json"))
        found.append((source, made.content.numbers))
        rows.reverse()
    assert found[0] == found[1]
    numbers = found[0][1]
    assert 20_000 <= numbers["trained_bytes"] < 21_000
    assert numbers["vocabulary"] == len(json.loads(found[0][0])["model"]["vocab"]) + len(SPECIAL_TOKENS)
    assert 1 < numbers["bytes_per_token"] < 10


def test_a_given_tokenizer_is_identified_by_its_file(spark: Any, tmp_path: Path) -> None:
    folder = tmp_path / "their-tokenizer"
    folder.mkdir()
    corpus(tmp_path / "root", documents(), 1)
    found = []
    for source in (SOURCE, bpe.train(TEXTS, 700, "llama-bpe")):
        (folder / "tokenizer.json").write_bytes(source)
        made = train_tokenizer.run(job(tmp_path / "root", {"tokenizer.source": str(folder)}))
        encoder = bpe.Tokenizer.from_bytes(made.storage.read(made.file("tokenizer.json")))
        assert encoder.encode(TEXTS[7]) == bpe.Tokenizer.from_bytes(source).encode(TEXTS[7])
        assert made.content.numbers["trained_bytes"] == 0 and made.content.numbers["held_out_documents"]
        found.append(made.content.fingerprint)
    assert found[0] != found[1]
