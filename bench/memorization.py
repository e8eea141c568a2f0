"""A model overfitted to one page, caught reciting it: `make bench-memorization`, five minutes on one core.

    python -m bench.memorization [--recipe recipes/demo.yaml] [--root …] [--steps 60]

Pages of the sample crawl's first file become shards, by the functions of the corpus's stages; one of them becomes a
shard artifact of its own, which `pretrain.mix` gives half of all samples. `training/pretrain.py` trains the demo's
model on both, and `evaluation/memorization.py` measures what it recites. Prints Markdown tables, and fails if the page
is not caught.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.folders import HOME
from jobs import shard
from jobs.archive import warc
from jobs.extract import document_id, read_page
from jobs.page import quality
from jobs.stage.table import write_table
from jobs.train_tokenizer import STAGE as TOKENIZER
from pipeline import artifact, command, errors
from pipeline.artifact import Building, Identity, Published, describe
from pipeline.errors import RecipeError
from pipeline.recipe import Recipe, TrainedTokenizer, load
from pipeline.storage import Storage
from tokenizer import bpe, shards

WARC = HOME / "tests/data/sample/CC-SAMPLE-00000.warc.gz"
SHARE = 0.5  # of the samples that are windows of the repeated page
BATCH = 8  # samples per step
# Tokens of the repeated page: more than a window of the demo's 256, and few enough to be memorized in 60 steps.
PAGE_TOKENS = (300, 1_000)
CAUGHT = 16  # tokens recited from which on the page counts as caught, as the demo's `memorization.recited`
MEMORIZATION = {"documents": 1_000, "prompt_tokens": 32, "new_tokens": 64, "free_samples": 40}  # documents: all


def pages(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """The pages of the file that the recipe keeps: `id`, `url`, `warc`, `offset`, `text`."""
    with WARC.open("rb") as stream:
        for capture in warc.captures(stream, recipe.extract.max_html_bytes):
            if capture.status == 200 and capture.content_type.startswith("text/html"):
                row = read_page(recipe.extract, None, capture)
                if row.get("text") and quality.decide(row, recipe.filter) is None:
                    yield {
                        "id": document_id(WARC.name, capture.offset),
                        "url": capture.url,
                        "warc": WARC.name,
                        "offset": capture.offset,
                        "text": row["text"],
                    }


def tokenizer(storage: Storage, recipe: Recipe, texts: list[str]) -> tuple[Published, bpe.Tokenizer]:
    """The recipe's tokenizer, trained on these texts and published."""
    section = recipe.tokenizer
    if not isinstance(section, TrainedTokenizer):
        raise RecipeError(
            f"the recipe takes the tokenizer {section.source!r}, and this benchmark trains one on its pages",
            "choose a recipe whose tokenizer.source is 'train', as recipes/demo.yaml",
        )
    opened = artifact.start(
        storage, recipe.name, Identity(TOKENIZER, command.settings(recipe, "tokenizer"), recipe.seed, []), force=True
    )
    assert isinstance(opened, Building)
    source = bpe.train(texts, section.vocabulary, section.pattern)
    storage.write(opened.file(bpe.FILE), source)
    encoder = bpe.Tokenizer.from_bytes(source)
    file = describe(storage, opened.pointer.folder, bpe.FILE, encoder.vocabulary)
    return opened.publish([file], numbers={"vocabulary": encoder.vocabulary, "sha256": encoder.sha256}), encoder


def publish(
    storage: Storage, recipe: Recipe, run: str, made_by: Published, encoder: bpe.Tokenizer, rows: list[dict[str, Any]]
) -> Published:
    """A shard artifact of these pages as the stage writes it, with one shard per split.

    An artifact of another run than the recipe's own has the run in its section: else both had one fingerprint.
    """
    section = recipe.section("shard") | ({} if run == recipe.name else {"run": run})
    opened = artifact.start(storage, run, Identity(shard.STAGE, section, recipe.seed, [made_by.as_input()]), force=True)
    assert isinstance(opened, Building)
    files, dtype, folder = [], shards.dtype_for(encoder.vocabulary), opened.pointer.folder
    numbers: dict[str, Any] = {"dtype": dtype.name, "vocabulary": encoder.vocabulary, "tokenizer": encoder.sha256}
    for split in shard.SPLITS:
        # 1. The split's documents in the order of their keys, end to end, and each one's place among the tokens.
        documents: list[dict[str, Any]] = []
        ids: list[int] = []
        for row in sorted(rows, key=lambda row: str(row["key"])):
            if row["split"] == split:
                tokens = [*encoder.encode(row["text"]), encoder.end_of_text]
                place = {"document": len(documents), "start": len(ids), "tokens": len(tokens)}
                documents.append(row | place | {"bytes": len(row["text"].encode())})
                ids += tokens
        numbers |= {f"{split}_tokens": len(ids), f"{split}_bytes": sum(row["bytes"] for row in documents)}
        if not documents:
            continue
        # 2. The shard: tokens, index, and the sidecar that names their documents.
        name = f"{split}-00000.bin"
        index, sidecar = name.replace(".bin", ".idx"), shards.sidecar(name)
        storage.write(opened.file(name), np.array(ids, dtype).tobytes())
        storage.write(opened.file(index), shards.index([row["tokens"] for row in documents], dtype))
        write_table(storage, opened.file(sidecar), documents, shards.SIDECAR)
        files += [describe(storage, folder, file, len(documents)) for file in (name, index, sidecar)]
    return opened.publish(files, numbers=numbers)


def build(root: str, path: str, steps: int, folder: Path) -> tuple[Path, str]:
    """Publish shards of the pages and shards of the repeated page, and write the recipe that mixes them.

    Returns the recipe's file and the repeated page's URL.
    """
    # 1. The pages, with the key and the split that the stage gives them.
    storage = Storage(root)
    base = load(path, {"name": "recited"})
    rows = [
        row | dict(zip(("key", "split"), shard.place(base.seed, row["id"], base.shard.validation), strict=True))
        for row in pages(base)
    ]
    made_by, encoder = tokenizer(storage, base, [row["text"] for row in rows])
    # 2. The first training page of a suitable length is the repeated one, and is left out of the other shards.
    least, limit = PAGE_TOKENS
    repeated = next(
        row for row in rows if row["split"] == "train" and least <= len(encoder.encode(row["text"])) < limit
    )
    publish(storage, base, base.name, made_by, encoder, [row for row in rows if row is not repeated])
    mixed = publish(storage, base, "recited-page", made_by, encoder, [repeated])
    # 3. The recipe.
    changes: dict[str, Any] = {f"memorization.{name}": value for name, value in MEMORIZATION.items()}
    changes |= {"pretrain.steps": steps, "pretrain.batch": BATCH, "pretrain.evaluate_every": steps}
    changes |= {"pretrain.mix": {mixed.folder: SHARE}}
    file = folder / "recited.yaml"
    file.write_text(load(path, {"name": base.name} | changes).to_yaml())
    return file, str(repeated["url"])


def stage(script: str, *options: str) -> None:
    """Run a stage's script on one core. Exits the program with its output if it fails."""
    command = [sys.executable, str(HOME / script), *options]
    cores = str(os.cpu_count())  # a rank takes its share of the cores: of as many ranks as cores, one
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": cores, "PYTHONPATH": str(HOME)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-5000:]}\n{script} ended with {done.returncode}")


def table(numbers: dict[str, Any], results: dict[str, Any]) -> Iterator[str]:
    """Markdown: how much is recited of each kind of sample, and the pages recited longest."""
    yield "| | samples | mean tokens | longest | recited |\n|---|---:|---:|---:|---:|"
    kinds = {
        "train": "training documents, verbatim continuation",
        "validation": "validation documents, the same",
        "free": "free samples, longest span in the shards",
    }
    for name, kind in kinds.items():
        if samples := numbers[f"{name}_samples"]:
            mean, longest, recited = (numbers[f"{name}_{key}"] for key in ("mean", "longest", "recited"))
            yield f"| {kind} | {samples} | {mean:.2f} | {longest} | {recited * samples:.0f} |"
    yield "\n| page | tokens recited | continuation |\n|---|---:|---|"
    for row in results["train"][:4]:
        text = " ".join(row["text"].split())
        yield f"| {row['url']} | {row['verbatim']} | {text[:80] + '…' if len(text) > 80 else text} |"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=str(HOME / "recipes/demo.yaml"))
    parser.add_argument("--root", help="where artifacts are published; default: a temporary folder")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        root = options.root or f"{name}/root"
        file, url = build(root, options.recipe, options.steps, Path(name))
        place = ("--recipe", str(file), "--root", root)
        stage("training/pretrain.py", *place)
        stage("evaluation/memorization.py", *place, "--of", "pretrain")
        measured = artifact.of_run(Storage(root), "recited", "memorization-pretrain")
        results = json.loads(measured.storage.read(measured.file("results.json")))
    print(f"Half of the samples of {options.steps} steps are {url}; {time.perf_counter() - began:.0f} s.\n")
    print("\n".join(table(results["numbers"], results)))
    best = results["train"][0]
    if best["url"] != url or best["verbatim"] < CAUGHT:
        sys.exit(
            f"{url} was not caught: the longest continuation recited is {best['verbatim']} tokens of {best['url']}, "
            f"where {CAUGHT} of that page were expected; more --steps memorize more"
        )


if __name__ == "__main__":
    errors.run(main)
