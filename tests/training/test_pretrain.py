"""Pretraining from shards to a published model: what it learns, what a kill costs, and the tables beside it."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline import artifact, errors, progress, recipe
from pipeline.artifact import Published, Stage, describe
from pipeline.storage import Storage
from tests.training import support
from tests.training.support import REPOSITORY, finish, wait_for_step
from tokenizer import bpe, shards
from training import launch, loader, pretrain
from training.engine import rows_a_rank
from training.launch import World
from training.ngrams import Tables, bits_per_byte

WORDS = [
    "the", "a", "cat", "dog", "bird", "sees", "likes", "hears", "small", "big",
    "red", "old", "and", "then", "while", "near", "house", "tree", "river", "road",
]  # fmt: skip


def documents(count: int) -> list[str]:
    """Text with something to learn: a word leaves three choices for the next."""
    chooser = random.Random(1)
    made = []
    for _ in range(count):
        at, words = chooser.randrange(len(WORDS)), []
        for _ in range(60):
            at = (at * 3 + chooser.choice((1, 4, 6))) % len(WORDS)
            words.append(WORDS[at])
        made.append(" ".join(words) + ".")
    return made


def small(folder: Path, **pretraining: Any) -> Path:
    """The demo recipe with a model of a thousandth and `steps` of a second."""
    data = support.demo(64)
    data["tokenizer"]["vocabulary"] = 512
    data["sft"]["window"] = 32
    data["pretrain"] |= {"window": 32, "batch": 8, "steps": 60, "evaluate_every": 20, "checkpoint_every": 5}
    data["pretrain"]["optimizer"] |= {"lr": 0.02, "muon_lr": 0.05}
    data["pretrain"] |= {"prompts": ["the cat"]} | pretraining
    return support.write(data, folder)


def publish(root: Path, path: Path, vocabulary: int | None = None) -> Published:
    """Tokenizer and shard artifacts of a run, as the stages of the corpus leave them."""
    chosen, storage = recipe.load(path), Storage(root)

    def opened(name: str, inputs: list[artifact.Input]) -> artifact.Building:
        made = artifact.open_stage(
            storage, chosen.name, Stage(name, 1), chosen.section(name), chosen.seed, inputs, force=True
        )
        assert isinstance(made, artifact.Building)
        return made

    texts = documents(120)
    building = opened("tokenizer", [])
    source = bpe.train(texts, 512, "qwen2")
    storage.write(building.file("tokenizer.json"), source)
    made_by = building.publish([describe(storage, building.pointer.folder, "tokenizer.json", 1)])
    tokenizer = bpe.Tokenizer.from_bytes(source)
    building = opened("shard", [made_by.as_input()])
    files: list[artifact.File] = []
    numbers: dict[str, Any] = {"tokenizer": tokenizer.sha256, "vocabulary": vocabulary or tokenizer.vocabulary}
    for split, part in (("validation", texts[:20]), ("train", texts[20:])):
        ids = [[*tokenizer.encode(text), tokenizer.end_of_text] for text in part]
        dtype = shards.dtype_for(tokenizer.vocabulary)
        for number, half in enumerate((ids[: len(ids) // 2], ids[len(ids) // 2 :])):
            name = f"{split}-{number:05d}"
            storage.write(building.file(f"{name}.bin"), np.concatenate(half).astype(dtype).tobytes())
            storage.write(building.file(f"{name}.idx"), shards.index([len(x) for x in half], dtype))
            files += [describe(storage, building.pointer.folder, f"{name}.{end}", len(half)) for end in ("bin", "idx")]
        numbers[f"{split}_tokens"] = sum(len(x) for x in ids)
        numbers[f"{split}_bytes"] = sum(len(text.encode()) for text in part)
    return building.publish(files, numbers=numbers | {"dtype": dtype.name})


def start(root: Path, path: Path, rank: int = 0, size: int = 1, port: int = 29511) -> subprocess.Popen[str]:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    env = os.environ | {name: str(value) for name, value in ranks.items()}
    env |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPOSITORY / "training" / "pretrain.py"), "--recipe", str(path), "--root", str(root)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def made(root: Path) -> Published:
    return support.made(root, "pretrain")


def hashes(root: Path) -> dict[str, str]:
    return {file.path: file.sha256 for file in made(root).content.files}


def test_it_learns_publishes_and_is_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small(tmp_path)
    publish(tmp_path / "root", path)
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--recipe", str(path), "--root", str(tmp_path / "root")])
    monkeypatch.setattr(launch, "stop", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    pretrain.main()
    signal.signal(signal.SIGTERM, before)
    published = made(tmp_path / "root")
    numbers = published.content.numbers
    assert numbers["loss_first"] - numbers["loss_last"] > 1.0
    assert numbers["bits_per_byte"] < numbers["unigram_bits_per_byte"]
    assert numbers["bigram_bits_per_byte"] < numbers["unigram_bits_per_byte"]
    assert numbers["tokens_seen"] == 60 * 8 * 32 and numbers["steps_skipped"] == 0
    rows = [json.loads(x) for x in published.storage.read(published.file("metrics.jsonl")).splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert [row["step"] for row in rows if "validation_loss" in row] == [20, 40, 60]
    samples = [json.loads(x) for x in published.storage.read(published.file("samples.jsonl")).splitlines()]
    assert [row["step"] for row in samples] == [20, 40, 60] and samples[0]["prompt"] == "the cat"
    folder = Storage(tmp_path / "root").local_path(published.folder)
    net, text = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert numbers["parameters"] == sum(p.numel() for p in net.parameters())
    assert text.decode(text.encode("the cat sees")) == "the cat sees"
    # The same bits a byte, counted from the published files alone.
    shard = artifact.of_run(Storage(tmp_path / "root"), "demo", "shard")
    held = loader.open_split(shard, "validation", net.config.vocab_size)
    ids = torch.from_numpy(held.read(0, held.total))
    cost = 0.0
    with torch.no_grad():
        for at in range(0, len(ids) - 1, 32):
            window = ids[at : at + 33]
            logits = net(input_ids=window[None, :-1]).logits[0]
            cost += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    per_token = cost / (len(ids) - 1)
    assert numbers["validation_loss"] == pytest.approx(per_token, abs=1e-5)
    size = shard.content.numbers["validation_bytes"]
    assert numbers["bits_per_byte"] == pytest.approx(per_token * len(ids) / math.log(2) / size, abs=1e-5)
    seen = list(progress.events(Storage(tmp_path / "root"), f"_work/pretrain/{published.content.fingerprint}/progress"))
    assert seen[-1].done == seen[-1].total == 60
    capsys.readouterr()
    pretrain.main()
    assert "already made" in capsys.readouterr().out


def test_shards_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    shard = publish(tmp_path, small(tmp_path), vocabulary=1000)
    with pytest.raises(errors.ArtifactError, match="vocabulary of 1000"):
        loader.open_split(shard, "train", 512)


def test_unlisted_files_are_not_read(tmp_path: Path) -> None:
    shard = publish(tmp_path, small(tmp_path))
    vocabulary = shard.content.numbers["vocabulary"]
    whole = loader.open_split(shard, "train", vocabulary).total
    assert whole == shard.content.numbers["train_tokens"]
    Storage(tmp_path).write(shard.file("train-00002.bin"), b"\0\0\0\0")
    assert loader.open_split(shard, "train", vocabulary).total == whole


def test_validation_shares_windows_between_ranks() -> None:
    stream = loader.Stream([np.arange(50, dtype=np.uint16)], "c")
    found = [window.tolist() for window in pretrain.windows(stream, 8, None)]
    assert found == [list(range(at, min(at + 9, 50))) for at in range(0, 49, 8)]
    assert sum(len(window) - 1 for window in found) == 49
    assert len(list(pretrain.windows(stream, 8, 3))) == 3


def test_tables_are_the_counts_by_hand() -> None:
    tokens = np.random.default_rng(1).integers(0, 5, 400).cumsum() % 7
    held = tokens[50:120]
    tables = Tables(tokens, 9)
    ones, pairs = Counter(tokens.tolist()), Counter(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    before = Counter(tokens[:-1].tolist())
    unigram = [(ones[t] + 1) / (400 + 9) for t in held[1:].tolist()]
    steps = list(zip(held[:-1].tolist(), held[1:].tolist(), strict=True))
    mixed = [
        tables.weight * pairs[(a, b)] / before[a] + (1 - tables.weight) * u
        for (a, b), u in zip(steps, unigram, strict=True)
    ]
    assert tables.unigram_cost(held) == pytest.approx(-sum(map(math.log, unigram)) / 69)
    assert tables.bigram_cost(held) == pytest.approx(-sum(map(math.log, mixed)) / 69)
    assert tables.bigram_cost(held) < tables.unigram_cost(held)
    assert math.isfinite(tables.bigram_cost(np.array([8, 8, 0])))  # never seen
    assert bits_per_byte(math.log(2), 10, 5) == pytest.approx(2.0)


def test_a_batch_that_ranks_cannot_share_is_refused_before_anything_is_spent() -> None:
    with pytest.raises(errors.RecipeError, match="not a multiple of 3"):
        rows_a_rank(8, World(0, 0, 3, 3, torch.device("cpu")))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_killed_at_any_step_it_ends_with_the_same_bytes(size: int, tmp_path: Path) -> None:
    # Long enough that the events, written once a second, show the steps to kill at before the last.
    path = small(tmp_path, steps=400, evaluate_every=100, checkpoint_every=7)
    for name in ("whole", "killed"):
        publish(tmp_path / name, path)
    ports = iter(random.Random(size).sample(range(30000, 40000), 9))

    def ranks(root: Path) -> list[subprocess.Popen[str]]:
        port = next(ports)
        return [start(root, path, rank, size, port) for rank in range(size)]

    finish(ranks(tmp_path / "whole"))
    for after in (20, 130, 260):
        running = ranks(tmp_path / "killed")
        wait_for_step(tmp_path / "killed", "pretrain", after, running)
        for process in running:
            process.kill()
        for process in running:
            process.communicate()
    said = finish(ranks(tmp_path / "killed"))
    assert "goes on from step" in said
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
    assert made(tmp_path / "killed").manifest.content_hash == made(tmp_path / "whole").manifest.content_hash
    assert made(tmp_path / "killed").manifest.run.attempts == 4


@pytest.mark.slow
def test_asked_to_stop_it_saves_and_goes_on(tmp_path: Path) -> None:
    path = small(tmp_path, steps=600, evaluate_every=300, checkpoint_every=1000)
    publish(tmp_path / "root", path)
    running = [start(tmp_path / "root", path, rank, 2, 29733) for rank in range(2)]
    wait_for_step(tmp_path / "root", "pretrain", 5, running)
    running[1].send_signal(signal.SIGTERM)  # one of them is enough
    said = finish(running, errors.EXIT_RESUME)
    assert "asked to stop and saved step" in said
    said = finish([start(tmp_path / "root", path, rank, 2, 29734) for rank in range(2)])
    assert "goes on from step" in said
    assert made(tmp_path / "root").content.numbers["tokens_seen"] == 600 * 8 * 32
