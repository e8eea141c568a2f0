"""A byte-level BPE tokenizer, trained on a sample of the corpus, or an existing one.

    spark-submit jobs/train_tokenizer.py --recipe recipes/demo.yaml --root .crawl2chat/data

Which documents are in the sample depends on hashes of their ids alone. A tenth of them is held out from training; on
these the tokenizer's compression is measured, beside GPT-2's and GPT-4's where `TIKTOKEN_CACHE_DIR` holds those.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import xxhash
from pyspark.sql import SparkSession

from jobs.page.words import words
from jobs.stage import decisions, parts, session
from jobs.stage.parts import State
from jobs.stage.table import read_rows, write_table
from pipeline import artifact, command, errors
from pipeline.artifact import Building, Published, Stage
from pipeline.command import Job
from pipeline.numbers import TokenizerNumbers
from pipeline.recipe import TrainedTokenizer
from pipeline.storage import Storage
from tokenizer import bpe

STAGE = Stage("tokenizer", 5, ("tokenizers", "tiktoken"))
HELD_OUT = 10  # one document in so many is not trained on
SHORT_BYTES = 1000.0  # assumed least mean size of a document; where it is smaller, the corpus is sampled again
_SCHEMA = pa.schema([("order", pa.string()), ("bytes", pa.int64()), ("text", pa.string())])


def held_out(order: str) -> bool:
    """Whether the document with this hash is held out from training."""
    return int(order[-8:], 16) % HELD_OUT == 0


@dataclass(frozen=True)
class Sampling:
    """Samples the parts of a corpus: of each the documents with the smallest hashes, `share` of all.

    `size`: bytes of training text in the whole sample, and so a limit for each part too.
    """

    storage: Storage
    folder: str
    seed: int
    size: int
    share: float

    def work(self, part: decisions.Decided) -> Iterator[State]:
        """Write the sampled documents of one part, in the order of their hashes."""
        rows = []
        for row in decisions.kept(self.storage, part, ("text",)):
            order = xxhash.xxh3_128_hexdigest(f"{self.seed}:tokenizer:{row['id']}".encode())
            if int(order, 16) < self.share * 2**128:
                rows.append({"order": order, "text": row["text"], "bytes": len(row["text"].encode())})
        sample = first(sorted(rows, key=lambda row: row["order"]), self.size)
        write_table(self.storage, f"{self.folder}/part-{part.name}.parquet", sample, _SCHEMA)
        trained = sum(row["bytes"] for row in sample if not held_out(row["order"]))
        yield {"commit": {"documents": len(sample), "trained": trained}}


def first(rows: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """The first of these rows, which are in order, that together hold `size` bytes of training text."""
    trained = 0
    for count, row in enumerate(rows):
        if trained >= size:
            return rows[:count]
        trained += 0 if held_out(row["order"]) else row["bytes"]
    return rows


def texts(storage: Storage, files: list[str], size: int) -> tuple[list[str], list[str]]:
    """Training texts and held-out texts of the whole sample, in order.

    Reads keys before texts, so that memory holds the sample and one part, not all that the parts sampled.
    """
    keys = [row for file in files for row in read_rows(storage, file, ("order", "bytes"))]
    chosen = {row["order"] for row in first(sorted(keys, key=lambda row: row["order"]), size)}
    rows = []
    for file in files:
        rows += [row for row in read_rows(storage, file, ("order", "text")) if row["order"] in chosen]
    rows.sort(key=lambda row: row["order"])
    return (
        [row["text"] for row in rows if not held_out(row["order"])],
        [row["text"] for row in rows if held_out(row["order"])],
    )


def sampled(
    spark: SparkSession, building: Building, seed: int, redacted: Published, decided: Published, size: int
) -> tuple[list[str], float]:
    """Files that together hold at least the sample, and CPU seconds.

    The share of the documents to write follows from their assumed size, a thousandth of a snapshot's. Where this gives
    too little text, four times as many are written.
    """
    documents = decided.content.counts.kept if decided.content.counts else 0
    seconds = 0.0
    for attempt in itertools.count():
        share = min(1.0, 4**attempt * size / SHORT_BYTES / max(1, documents))
        folder = f"{building.work}/samples/{attempt}"
        sampling = Sampling(building.storage, folder, seed, size, share)
        corpus = decisions.aligned(redacted, decided)
        records = parts.run_parts(spark, building, corpus, sampling.work, f"sample-{attempt}")
        seconds += parts.cpu_seconds(records, None)
        if share == 1.0 or sum(record["trained"] for record in records.values()) >= size:
            break
    return [f"{folder}/part-{name}.parquet" for name in records], seconds + parts.cpu_seconds({}, spark)


def compression(texts: list[str], encoder: bpe.Tokenizer) -> dict[str, float]:
    """Bytes per token, and tokens per word (fertility), on these texts."""
    tokens = sum(len(encoder.encode(text)) for text in texts)
    return {
        "bytes_per_token": round(sum(len(text.encode()) for text in texts) / max(1, tokens), 4),
        "tokens_per_word": round(tokens / max(1, sum(len(words(text)) for text in texts)), 4),
    }


def comparison(texts: list[str]) -> dict[str, float | None]:
    """Bytes per token of GPT-2's and GPT-4's tokenizers on these texts; None for one that is not on this machine."""
    size = sum(len(text.encode()) for text in texts)
    encodings = {name: bpe.tiktoken_encoding(name) for name in ("gpt2", "cl100k_base")}
    return {
        f"{name}_bytes_per_token": round(size / max(1, sum(len(encoding.encode_ordinary(text)) for text in texts)), 4)
        if encoding
        else None
        for name, encoding in encodings.items()
    }


def publish(
    building: Building,
    source: bytes,
    window: int,
    numbers: dict[str, Any],
    run_numbers: dict[str, Any],
    cpu_seconds: float,
) -> Published:
    """Write the tokenizer's files and publish."""
    encoder = bpe.Tokenizer.from_bytes(source)
    for name, data in encoder.hf_files(window).items():
        building.storage.write(building.file(name), data)
    folder = building.pointer.folder
    files = [artifact.describe(building.storage, folder, name, encoder.vocabulary) for name in encoder.hf_files(window)]
    typed = TokenizerNumbers(vocabulary=encoder.vocabulary, sha256=encoder.sha256)
    return building.publish(files, None, typed.plain() | numbers, run_numbers, cpu_seconds)


def run(job: Job) -> Published:
    """Sample the corpus, train or read the tokenizer, measure its compression, publish."""
    recipe = job.recipe.tokenizer
    redacted, decided = command.upstream(job, "redact"), command.upstream(job, "decontaminate")
    assets: dict[str, str] = {}
    source = None if isinstance(recipe, TrainedTokenizer) else bpe.pretrained(recipe.source)
    if source:
        assets[recipe.source] = hashlib.sha256(source).hexdigest()
    building = command.open_stage(job, STAGE, [redacted, decided], assets)
    if isinstance(building, Published):
        return building
    building.restore("samples", "sample")
    spark = session.spark("tokenizer")
    samples, seconds = sampled(spark, building, job.recipe.seed, redacted, decided, recipe.sample_bytes)
    spark.stop()
    training, validation = texts(job.storage, samples, recipe.sample_bytes)
    numbers: dict[str, Any] = {"trained_bytes": 0, "held_out_documents": len(validation)}
    if isinstance(recipe, TrainedTokenizer):
        if not training:
            raise errors.InputError("no document is left to train a tokenizer on", "loosen the filters in the recipe")
        source = bpe.train(training, recipe.vocabulary, recipe.pattern)
        numbers["trained_bytes"] = sum(len(text.encode()) for text in training)
    assert source is not None
    numbers |= compression(validation, bpe.Tokenizer.from_bytes(source))
    # The comparison is not part of the content: whether a machine has GPT-2's tokenizer must not change its hash.
    published = publish(building, source, job.recipe.model.window, numbers, comparison(validation), seconds)
    building.discard("samples")
    return published


def main() -> None:
    job = command.parse(__doc__)
    with command.recording(job, STAGE.name):
        run(job)


if __name__ == "__main__":
    errors.run(main)
