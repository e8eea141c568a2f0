"""A byte-level BPE tokenizer learned from a sample of the corpus, or a given one.

    spark-submit jobs/train_tokenizer.py --recipe recipes/demo.yaml --root .crawl2chat/data

Which documents are in the sample depends on hashes of their ids alone. Every tenth of them is kept out of training
and tells how well the tokenizer compresses, beside GPT-2's and GPT-4's where `TIKTOKEN_CACHE_DIR` holds those.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import tiktoken
import xxhash

from jobs import parts, session
from jobs.page.words import words
from jobs.table import read_rows, write_table
from pipeline import artifact, errors
from pipeline.artifact import Building, Published, Stage
from pipeline.storage import Storage
from tokenizer import bpe

STAGE = Stage("tokenizer", 1, ("tokenizers", "tiktoken"))
HELD_OUT = 10  # one document in so many is not trained on
_SCHEMA = pa.schema([("id", pa.string()), ("order", pa.string()), ("text", pa.string())])


def sample(name: str, payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One part: its documents in order of their hash, up to the sample's size."""
    storage = Storage(payload["root"])
    rows = read_rows(storage, payload["redact"], ("id", "text"))
    for row in rows:
        row["order"] = xxhash.xxh3_128_hexdigest(f"{payload['seed']}:tokenizer:{row['id']}".encode())
    rows.sort(key=lambda row: row["order"])
    size, taken = 0, []
    for row in rows:
        if size >= payload["bytes"]:
            break
        size += len(row["text"].encode())
        taken.append(row)
    write_table(storage, f"{payload['work']}/sample/part-{name}.parquet", taken, _SCHEMA)
    yield {"commit": {"documents": len(taken), "bytes": size}}


def compression(texts: list[str], encoder: bpe.Tokenizer) -> dict[str, float | None]:
    """Bytes a token and tokens a word on these texts, beside GPT-2's and GPT-4's bytes a token."""
    size = sum(len(text.encode()) for text in texts)
    tokens = sum(map(len, encoder.encode_batch(texts)))
    found: dict[str, float | None] = {
        "bytes_per_token": round(size / max(1, tokens), 4),
        "tokens_per_word": round(tokens / max(1, sum(len(words(text)) for text in texts)), 4),
    }
    for name in ("gpt2", "cl100k_base"):
        known = None
        if os.environ.get("TIKTOKEN_CACHE_DIR"):
            try:
                known = tiktoken.get_encoding(name)
            except OSError as error:  # not in the cache, and nothing is downloaded
                print(f"{name}: not compared ({error})", flush=True)
        found[f"{name}_bytes_per_token"] = (
            round(size / max(1, sum(len(known.encode_ordinary(text)) for text in texts)), 4) if known else None
        )
    return found


def publish(building: Building, source: bytes, window: int, numbers: dict[str, Any], cpu_seconds: float) -> Published:
    """Write the tokenizer's files and publish."""
    encoder = bpe.Tokenizer.from_bytes(source)
    for name, data in encoder.hf_files(window).items():
        building.storage.write(building.file(name), data)
    folder = building.pointer.folder
    files = [artifact.describe(building.storage, folder, name, encoder.vocabulary) for name in encoder.hf_files(window)]
    known = {"vocabulary": encoder.vocabulary, "sha256": encoder.sha256}
    return building.publish(files, numbers=known | numbers, cpu_seconds=cpu_seconds)


def run(job: session.Job) -> Published:
    """The stage."""
    recipe = job.recipe.tokenizer
    redacted = session.upstream(job, "redact")
    building = artifact.open_stage(
        job.storage,
        job.run,
        STAGE,
        job.recipe.section("tokenizer"),
        job.recipe.seed,
        [redacted.as_input()],
        # The window stands in the tokenizer's own configuration file.
        assets={"window": str(job.recipe.model.window)},
        force=job.force,
    )
    if isinstance(building, Published):
        return building
    payload = {
        "seed": job.recipe.seed,
        "bytes": recipe.sample_bytes,
        "root": job.storage.root,
        "work": building.work,
    }
    todo = [(session.part_name(file), payload | {"redact": file}) for file in redacted.files(".parquet")]
    spark = session.spark("tokenizer")
    records = parts.run_parts(spark, building, todo, sample)
    seconds = parts.cpu_seconds(records, spark)
    spark.stop()
    rows = [row for name in records for row in read_rows(job.storage, f"{building.work}/sample/part-{name}.parquet")]
    rows.sort(key=lambda row: row["order"])
    held_out = [row["text"] for row in rows[::HELD_OUT]]
    texts, size = [], 0
    for i, row in enumerate(rows):
        if i % HELD_OUT and size < recipe.sample_bytes:
            texts.append(row["text"])
            size += len(row["text"].encode())
    if recipe.source == "train":
        if not texts:
            raise errors.InputError("no document is left to learn a tokenizer from", "loosen the filters in the recipe")
        source = bpe.train(texts, recipe.vocabulary, recipe.pattern)
    else:
        source = bpe.given(recipe.source)
    numbers = {"trained_bytes": size if recipe.source == "train" else 0, "held_out_documents": len(held_out)}
    numbers |= compression(held_out, bpe.Tokenizer.from_bytes(source))  # type: ignore[arg-type]
    return publish(building, source, job.recipe.model.window, numbers, seconds)


def main() -> None:
    run(session.job(__doc__))


if __name__ == "__main__":
    errors.run(main)
