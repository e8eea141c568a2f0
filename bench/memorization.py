"""A model over-trained on one page, caught reciting it: `make bench-memorization`, five minutes on one core.

    python -m bench.memorization [--recipe recipes/demo.yaml] [--root …] [--steps 60]

Pages of the sample crawl's first file become shards, by the functions of the corpus' stages; one page more is an
artifact of its own, which `pretrain.mix` gives half of all samples. The demo's model learns from both by
`training/pretrain.py`, and `evaluation/memorization.py` is asked what it recites. Prints Markdown tables, and fails
where the page is not caught.
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

from jobs import shard
from jobs.archive import warc
from jobs.extract import document_id, read_page
from jobs.page import quality
from jobs.stage.table import write_table
from jobs.train_tokenizer import STAGE as TOKENIZER
from pipeline import artifact, command, errors
from pipeline.artifact import Building, Published, describe
from pipeline.recipe import Recipe, load
from pipeline.storage import Storage
from tokenizer import bpe, shards

HOME = Path(__file__).resolve().parents[1]
WARC = HOME / "tests/data/sample/CC-SAMPLE-00000.warc.gz"
SHARE = 0.5  # of the samples that are the one page's
BATCH = 8  # rows a step, half of them the page's
LONG = (300, 1_000)  # tokens of it: more than a window, few enough to be learned soon
QUESTIONS = {"documents": 1_000, "prompt_tokens": 32, "new_tokens": 64, "free_samples": 40}  # documents: all


def pages(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """The pages of the file that the recipe keeps: `id`, `url`, `warc`, `offset`, `text`."""
    with WARC.open("rb") as stream:
        for capture in warc.captures(stream, recipe.extract.max_html_bytes):
            if capture.status == 200 and capture.content_type.startswith("text/html"):
                row = read_page(recipe.extract, None, capture)
                if row.get("text") and quality.decide(row, recipe.filter) is None:
                    place = {"warc": WARC.name, "offset": capture.offset}
                    yield {
                        "id": document_id(WARC.name, capture.offset),
                        "url": capture.url,
                        "text": row["text"],
                        **place,
                    }


def tokenizer(storage: Storage, recipe: Recipe, texts: list[str]) -> tuple[Published, bpe.Tokenizer]:
    """The tokenizer of the recipe, learned from these texts."""
    section = recipe.tokenizer
    opened = artifact.open_stage(
        storage, recipe.name, TOKENIZER, command.settings(recipe, "tokenizer"), recipe.seed, [], force=True
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
    """A shard artifact of these pages, a file a split, as the stage writes it."""
    section = recipe.section("shard") | ({} if run == recipe.name else {"run": run})
    opened = artifact.open_stage(storage, run, shard.STAGE, section, recipe.seed, [made_by.as_input()], force=True)
    assert isinstance(opened, Building)
    files, dtype, folder = [], shards.dtype_for(encoder.vocabulary), opened.pointer.folder
    numbers: dict[str, Any] = {"dtype": dtype.name, "vocabulary": encoder.vocabulary, "tokenizer": encoder.sha256}
    for split in shard.SPLITS:
        documents, ids, start = [], [], 0
        for row in sorted(rows, key=lambda row: str(row["key"])):
            if row["split"] == split:
                own = [*encoder.encode(row["text"]), encoder.end_of_text]
                place = {"document": len(documents), "start": start, "tokens": len(own)}
                documents.append(row | place | {"bytes": len(row["text"].encode())})
                ids += own
                start += len(own)
        numbers |= {f"{split}_tokens": start, f"{split}_bytes": sum(row["bytes"] for row in documents)}
        if not documents:
            continue
        name = f"{split}-00000"
        storage.write(opened.file(f"{name}.bin"), np.array(ids, dtype).tobytes())
        storage.write(opened.file(f"{name}.idx"), shards.index([row["tokens"] for row in documents], dtype))
        write_table(storage, opened.file(f"{name}.documents.parquet"), documents, shard.SIDECAR)
        files += [
            describe(storage, folder, name + end, len(documents)) for end in (".bin", ".idx", ".documents.parquet")
        ]
    return opened.publish(files, numbers=numbers)


def build(root: str, path: str, steps: int, folder: Path) -> tuple[Path, str]:
    """Shards of the pages and of the one page, and the recipe that mixes them; its file, and the page's URL."""
    storage = Storage(root)
    base = load(path, {"name": "recited"})
    found = [
        row | dict(zip(("key", "split"), shard.place(base.seed, row["id"], base.shard.validation), strict=True))
        for row in pages(base)
    ]
    made_by, encoder = tokenizer(storage, base, [row["text"] for row in found])
    one = next(
        row for row in found if row["split"] == "train" and LONG[0] <= len(encoder.encode(row["text"])) < LONG[1]
    )
    publish(storage, base, base.name, made_by, encoder, [row for row in found if row is not one])
    mixed = publish(storage, base, "recited-page", made_by, encoder, [one])
    changes = {f"memorization.{name}": value for name, value in QUESTIONS.items()}
    changes |= {"pretrain.steps": steps, "pretrain.batch": BATCH, "pretrain.evaluate_every": steps}
    changes |= {"pretrain.mix": {mixed.folder: SHARE}}
    file = folder / "recited.yaml"
    file.write_text(load(path, {"name": base.name} | changes).to_yaml())
    return file, str(one["url"])


def stage(script: str, *options: str) -> None:
    """A training stage as its docstring says, on one core. Ends the program where it fails, with its output."""
    command = [sys.executable, str(HOME / "training" / script), *options]
    cores = str(os.cpu_count())  # shared with as many ranks as there are, this one has one
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": cores, "PYTHONPATH": str(HOME)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-5000:]}\n{script} ended with {done.returncode}")


def table(numbers: dict[str, Any], results: dict[str, Any]) -> Iterator[str]:
    """Markdown: what is recited of which kind, and the page that is recited longest."""
    yield "| | samples | mean tokens | longest | recited |\n|---|---:|---:|---:|---:|"
    kinds = {
        "train": "training documents, verbatim continuation",
        "validation": "held-out documents, the same",
        "free": "free samples, longest span in the shards",
    }
    for name, said in kinds.items():
        if samples := numbers[f"{name}_samples"]:
            mean, longest, recited = (numbers[f"{name}_{key}"] for key in ("mean", "longest", "recited"))
            yield f"| {said} | {samples} | {mean:.2f} | {longest} | {recited * samples:.0f} |"
    yield "\n| page | tokens word for word | what it said |\n|---|---:|---|"
    for row in results["train"][:4]:
        text = " ".join(row["text"].split())
        yield f"| {row['url']} | {row['verbatim']} | {text[:80] + '…' if len(text) > 80 else text} |"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=str(HOME / "recipes/demo.yaml"))
    parser.add_argument("--root", help="where artifacts are made; default: a folder that goes again")
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        root = given.root or f"{name}/root"
        file, url = build(root, given.recipe, given.steps, Path(name))
        options = ("--recipe", str(file), "--root", root)
        stage("pretrain.py", *options)
        stage("memorization.py", *options, "--of", "pretrain")
        made = artifact.of_run(Storage(root), "recited", "memorization-pretrain")
        results = json.loads(made.storage.read(made.file("results.json")))
    print(f"Half of the samples of {given.steps} steps are {url}; {time.perf_counter() - began:.0f} s.\n")
    print("\n".join(table(results["numbers"], results)))
    best = results["train"][0]
    if best["url"] != url or best["verbatim"] < 16:
        sys.exit(f"{url} was not caught: the longest recited is {best['verbatim']} tokens of {best['url']}")


if __name__ == "__main__":
    errors.run(main)
