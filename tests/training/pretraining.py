"""A pretraining of a second for tests: its recipe, its shards, and what it made."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifact, command, recipe
from pipeline.artifact import Published, Stage, describe
from pipeline.storage import Storage
from tests.training import support
from tokenizer import bpe, shards

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


def publish(root: Path, path: Path, vocabulary: int | None = None, given: Path | None = None) -> Published:
    """Tokenizer and shard artifacts of a run, as the stages of the corpus leave them; the tokenizer that of `given`."""
    chosen, storage = recipe.load(path), Storage(root)

    def opened(name: str, inputs: list[artifact.Input]) -> artifact.Building:
        made = artifact.open_stage(
            storage, chosen.name, Stage(name, 1), command.settings(chosen, name), chosen.seed, inputs, force=True
        )
        assert isinstance(made, artifact.Building)
        return made

    texts = documents(120)
    building = opened("tokenizer", [])
    source = bpe.given(str(given)) if given else bpe.train(texts, 512, "qwen2")
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


def made(root: Path) -> Published:
    return support.made(root, "pretrain")


def hashes(root: Path) -> dict[str, str]:
    return {file.path: file.sha256 for file in made(root).content.files}
