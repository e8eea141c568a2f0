"""For tests: a pretraining that takes a second, with its recipe, its shards, and its artifact."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifact, command, recipe
from pipeline.artifact import Identity, Published, Stage, describe
from pipeline.storage import Storage
from tests.training import support
from tokenizer import bpe, shards

WORDS = [
    "the", "a", "cat", "dog", "bird", "sees", "likes", "hears", "small", "big",
    "red", "old", "and", "then", "while", "near", "house", "tree", "river", "road",
]  # fmt: skip


def documents(count: int) -> list[str]:
    """Text with something to learn: after each word only three others may follow."""
    generator = random.Random(1)
    texts = []
    for _ in range(count):
        word, words = generator.randrange(len(WORDS)), []
        for _ in range(60):
            word = (word * 3 + generator.choice((1, 4, 6))) % len(WORDS)
            words.append(WORDS[word])
        texts.append(" ".join(words) + ".")
    return texts


def small(folder: Path, **pretraining: Any) -> Path:
    """The demo recipe with a tiny model, whose pretraining takes a second, and these changes of `pretrain`."""
    data = support.demo(64)
    data["tokenizer"]["vocabulary"] = 512
    data["sft"]["window"] = 32
    data["pretrain"] |= {"window": 32, "batch": 8, "steps": 60, "evaluate_every": 20, "checkpoint_every": 5}
    data["pretrain"]["optimizer"] |= {"lr": 0.02, "muon_lr": 0.05}
    data["pretrain"] |= {"prompts": ["the cat"]} | pretraining
    return support.write(data, folder)


def publish(root: Path, path: Path, vocabulary: int | None = None, given: Path | None = None) -> Published:
    """Publish tokenizer and shards as the stages of the corpus do. `given`: folder of a tokenizer to use.

    `vocabulary`: what the shards' manifest says of it, where that is to differ from the tokenizer's.
    """
    chosen, storage = recipe.load(path), Storage(root)

    def opened(name: str, inputs: list[artifact.Input]) -> artifact.Building:
        building = artifact.start(
            storage,
            chosen.name,
            Identity(Stage(name, 1), command.settings(chosen, name), chosen.seed, inputs),
            force=True,
        )
        assert isinstance(building, artifact.Building)
        return building

    # 1. The tokenizer.
    texts = documents(120)
    building = opened("tokenizer", [])
    source = bpe.pretrained(str(given)) if given else bpe.train(texts, 512, "qwen2")
    storage.write(building.file("tokenizer.json"), source)
    tokenizer_artifact = building.publish([describe(storage, building.pointer.folder, "tokenizer.json", 1)])
    tokenizer = bpe.Tokenizer.from_bytes(source)
    # 2. Two shards per split, without the sidecar of documents: training reads .bin and .idx only.
    building = opened("shard", [tokenizer_artifact.as_input()])
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


def artifact_of(root: Path) -> Published:
    """The published pretraining."""
    return support.artifact_of(root, "pretrain")


def hashes(root: Path) -> dict[str, str]:
    """SHA-256 of each file of the published pretraining."""
    return {file.path: file.sha256 for file in artifact_of(root).content.files}
