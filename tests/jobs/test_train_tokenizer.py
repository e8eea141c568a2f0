"""A tokenizer's sample is what the smallest hashes say, however much of the corpus is written out to find it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs import train_tokenizer
from jobs.stage.table import read_table
from pipeline import artifact
from pipeline.artifact import Building
from pipeline.storage import Storage
from tests.jobs.conftest import job
from tests.jobs.test_shard import corpus, documents

SAMPLE = {"tokenizer.source": "train", "tokenizer.vocabulary": 512, "tokenizer.sample_bytes": 3_000}


def written(root: Path) -> list[int]:
    """Documents written out in each look at the corpus."""
    found = artifact.pointer(Storage(root), "test", "tokenizer")
    assert found
    folders = sorted((root / found.work).glob("samples/*"))
    storage = Storage(root)
    return [
        sum(
            len(read_table(storage, f"{found.work}/samples/{folder.name}/{file.name}"))
            for file in folder.glob("*.parquet")
        )
        for folder in folders
    ]


def test_little_of_a_large_corpus_is_written_for_the_same_sample(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Building, "discard", lambda *_: None)
    made = {}
    for name, short in (("all", 1e-6), ("enough", 100.0), ("again", 2_000.0)):
        monkeypatch.setattr(train_tokenizer, "SHORT_BYTES", short)
        corpus(tmp_path / name, documents(), 8)
        found = train_tokenizer.run(job(tmp_path / name, SAMPLE, run="test"))
        made[name] = [(file.path, file.sha256) for file in found.content.files], found.content.numbers
    assert made["all"] == made["enough"] == made["again"]
    (everything,), (once,), (first, *_, last) = (written(tmp_path / name) for name in made)
    assert once < everything / 2
    assert first < last < everything / 2
