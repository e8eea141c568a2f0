"""A quality model: it learns what it is shown, scores are a column, and a threshold decides without reading again."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from jobs import extract, filter, train_quality
from jobs.page import classifier
from jobs.stage.table import read_rows
from pipeline.errors import InputError, RecipeError
from pipeline.recipe import load
from tests.jobs.conftest import job, of

SENTENCES = {
    True: ("the harbour lay quiet", "we learn why the tide turns", "an essay explains its subject with care"),
    False: ("buy cheap pills now", "click here to win a prize", "best price free shipping today"),
}


def files(folder: Path) -> tuple[str, str]:
    rng, made = random.Random(1), []
    for good, name in ((True, "good.jsonl.gz"), (False, "other.txt")):
        texts = [" . ".join(rng.choice(SENTENCES[good]) for _ in range(8)) + f" {n}" for n in range(200)]
        if good:
            data = gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
        else:
            data = "\n".join(texts).encode()
        (folder / name).write_bytes(data)
        made.append(str(folder / name))
    return made[0], made[1]


def test_it_tells_apart_what_it_was_shown(tmp_path: Path) -> None:
    good, other = files(tmp_path)
    scores = train_quality.run([good], [other], tmp_path / "a.bin")
    assert 20 < len(scores) < 70 and {wanted for _, wanted in scores} == {True, False}
    assert train_quality.quality(scores) > 0.99
    train_quality.run([good], [other], tmp_path / "b.bin")
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    model = classifier.load(str(tmp_path / "a.bin"))
    assert classifier.score("An essay explains why the tide turns.", model) > 0.5
    assert classifier.score("BUY NOW!\nClick here, free shipping", model) < 0.5
    assert 0 <= classifier.score("", model) <= 1


def test_the_area_under_the_curve() -> None:
    assert train_quality.quality([(0.9, True), (0.8, True), (0.1, False)]) == 1
    assert train_quality.quality([(0.5, True), (0.5, False)]) == 0.5
    assert train_quality.quality([(0.1, True), (0.9, False), (0.05, False)]) == 0.5


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    good, _ = files(tmp_path)
    with pytest.raises(InputError, match="one of the two classes has no text"):
        train_quality.run([good], [], tmp_path / "x.bin")
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"body": "x"}\n')
    with pytest.raises(InputError, match=r"bad\.jsonl:2"):
        train_quality.run([str(tmp_path / "bad.jsonl")], [good], tmp_path / "x.bin")
    (tmp_path / "x.bin").write_bytes(b"no model")
    with pytest.raises(InputError, match="no fastText model"):
        classifier.load(str(tmp_path / "x.bin"))
    with pytest.raises(RecipeError, match="min_quality needs"):
        load("recipes/demo.yaml", {"filter.min_quality": 0.5})


def test_a_threshold_on_the_sample(tmp_path: Path, spark: Any, short: list[Path]) -> None:
    good, other = files(tmp_path)
    train_quality.run([good], [other], tmp_path / "quality.bin")
    overrides = of(short[:2], **{"extract.quality_model": str(tmp_path / "quality.bin")})
    made = extract.run(job(tmp_path / "root", overrides))
    rows = {row["id"]: row["quality"] for file in made.files(".parquet") for row in read_rows(made.storage, file)}
    known = sorted(score for score in rows.values() if score is not None)
    assert made.content.counts is not None and len(known) == made.content.counts.kept
    assert "quality_model" in made.content.assets
    limit = known[len(known) // 2]
    decided = filter.run(job(tmp_path / "root", overrides | {"filter.min_quality": limit}))
    for file in decided.files(".parquet"):
        for row in read_rows(decided.storage, file):
            assert (rows[row["id"]] >= limit) or row["reason"] in ("low_quality", "other_language")
    assert decided.content.counts is not None and decided.content.counts.dropped["low_quality"] > 10
