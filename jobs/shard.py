"""Token shards: documents tokenized, spread over shards by hash, sorted by hash within.

    spark-submit jobs/shard.py --recipe recipes/demo.yaml --root .crawl2chat/data

A document's shard is the leading bits of a hash of (seed, id), so the shuffle is exact, free, and the same whatever the
order and number of parts. Files: `<split>-<shard>.bin/.idx` (Megatron) and `<split>-<shard>.documents.parquet`, which
says which tokens came from which document and URL.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from jobs import parts, session
from jobs.decontaminate import aligned, stays
from jobs.table import read_rows, write_table
from pipeline import artifact, errors
from pipeline.artifact import Counts, Published, Stage
from pipeline.storage import Storage
from tokenizer import bpe, shards

STAGE = Stage("shard", 2, ("tiktoken",))
SPLITS = ("train", "validation")
SIDECAR = pa.schema(
    [
        ("document", pa.int64()),
        *((name, pa.string()) for name in ("id", "url", "warc")),
        ("offset", pa.int64()),
        ("start", pa.int64()),
        ("tokens", pa.int64()),
        ("bytes", pa.int64()),
    ]
)
_TOKENIZED = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "split", "id", "url", "warc")),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("ids", pa.binary()),
    ]
)


def place(seed: int, document: str, validation: float) -> tuple[str, str]:
    """(key, split) of a document: 128-bit hash in hex, whose leading bits are its shard, and the split by another."""
    key = xxhash.xxh3_128_hexdigest(f"{seed}:shard:{document}".encode())
    draw = xxhash.xxh3_64_intdigest(f"{seed}:split:{document}".encode()) / 2**64
    return key, "validation" if draw < validation else "train"


def tokenize_part(name: str, payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One part: ids of each document, `<|endoftext|>` last, with the key that places it."""
    storage = Storage(payload["root"])
    encoder = bpe.Tokenizer.from_bytes(storage.read(payload["tokenizer"]))
    dtype = shards.dtype_for(encoder.vocabulary)
    rows = stays(storage, payload["redact"], payload["decided"], ("id", "url", "warc", "offset", "text"))
    tokens = dict.fromkeys(SPLITS, 0)
    for number, row in enumerate(rows):
        text = row.pop("text")
        ids = np.array([*encoder.encode(text), encoder.end_of_text], dtype=dtype)
        row["key"], row["split"] = place(payload["seed"], row["id"], payload["validation"])
        row["ids"], row["bytes"] = ids.tobytes(), len(text.encode())
        tokens[row["split"]] += len(ids)
        if number % 1000 == 999:
            yield {"done": number}
    rows.sort(key=lambda row: row["key"])
    write_table(storage, f"{payload['work']}/tokens/part-{name}.parquet", rows, _TOKENIZED)
    yield {"commit": {"documents": len(rows), "tokens": tokens}}


def shard_of(key: str, count: int) -> int:
    """Number of the shard, of a power of two of them: the leading bits of the key."""
    return int(key[:8], 16) * count >> 32


def keys_of(shard: int, count: int) -> tuple[str, str]:
    """First and last key of a shard, of a power of two of them."""
    size = (1 << 128) // count
    return f"{shard * size:032x}", f"{(shard + 1) * size - 1:032x}"


def assemble(name: str, payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One shard: its documents from all parts, sorted by key."""
    storage = Storage(payload["root"])
    dtype = np.dtype(payload["dtype"])
    rows: list[dict[str, Any]] = []
    low, high = keys_of(payload["shard"], payload["count"])
    mine = [("split", "=", payload["split"]), ("key", ">=", low), ("key", "<=", high)]
    for file in payload["parts"]:  # sorted by key: of each file, little more than the shard's rows is read
        rows += read_rows(storage, file, where=mine)
        yield {"done": len(rows)}
    rows.sort(key=lambda row: row["key"])
    sizes = [len(row["ids"]) // dtype.itemsize for row in rows]
    start = 0
    for number, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        row.update(document=number, start=start, tokens=size)
        start += size
    folder = payload["folder"]
    with storage.writing(f"{folder}/{name}.bin") as stream:
        for row in rows:
            stream.write(row["ids"])
    storage.write(f"{folder}/{name}.idx", shards.index(sizes, dtype))
    write_table(storage, f"{folder}/{name}.documents.parquet", rows, SIDECAR)
    counts = {".bin": start, ".idx": len(rows), ".documents.parquet": len(rows)}
    files = [artifact.describe(storage, folder, name + end, held).model_dump() for end, held in counts.items()]
    yield {"commit": {"files": files, "bytes": sum(row["bytes"] for row in rows), "documents": len(rows)}}


def run(job: session.Job) -> Published:
    """The stage."""
    recipe = job.recipe.shard
    redacted, decided = session.upstream(job, "redact"), session.upstream(job, "decontaminate")
    tokenizer = session.upstream(job, "tokenizer")
    building = session.open_stage(job, STAGE, [redacted, decided, tokenizer])
    if isinstance(building, Published):
        return building
    payload = {"seed": job.recipe.seed, "root": job.storage.root, "work": building.work}
    tokenize = payload | {"tokenizer": tokenizer.file(bpe.FILE), "validation": recipe.validation}
    todo = [(name, tokenize | files) for name, files in aligned(redacted, decided)]
    spark = session.spark("shard")
    tokenized = parts.run_parts(spark, building, todo, tokenize_part, "tokenize")
    tokens = {split: sum(record["tokens"][split] for record in tokenized.values()) for split in SPLITS}
    if not tokens["train"] or not tokens["validation"]:
        raise errors.InputError(
            f"too little is left for both splits: {tokens}", "loosen the filters, add WARCs, or raise shard.validation"
        )
    dtype = shards.dtype_for(tokenizer.content.numbers["vocabulary"])
    payload |= {"folder": building.pointer.folder, "dtype": dtype.name}
    payload |= {"parts": [f"{building.work}/tokens/part-{name}.parquet" for name in tokenized]}
    pieces: list[tuple[str, dict[str, Any]]] = []
    for split in SPLITS:
        count = 1 << max(0, math.ceil(math.log2(tokens[split] / recipe.shard_tokens)))
        pieces += [(f"{split}-{i:05d}", payload | {"split": split, "shard": i, "count": count}) for i in range(count)]
    assembled = parts.run_parts(spark, building, pieces, assemble, "shard")
    numbers: dict[str, Any] = {
        "dtype": dtype.name,
        "vocabulary": tokenizer.content.numbers["vocabulary"],
        "tokenizer": tokenizer.content.numbers["sha256"],
        "shards": len(assembled),
    }
    for split in SPLITS:
        of_split = [record for name, record in assembled.items() if name.startswith(split)]
        numbers[f"{split}_tokens"] = tokens[split]
        numbers[f"{split}_bytes"] = sum(record["bytes"] for record in of_split)
        numbers[f"{split}_documents"] = sum(record["documents"] for record in of_split)
    documents = sum(record["documents"] for record in assembled.values())
    came = decided.content.counts.kept if decided.content.counts else 0
    published = building.publish(
        [artifact.File(**file) for record in assembled.values() for file in record["files"]],
        Counts(in_=came, kept=documents, dropped={}),
        numbers,
        cpu_seconds=parts.cpu_seconds(tokenized, spark) + parts.cpu_seconds(assembled, None),
    )
    spark.stop()
    return published


def main() -> None:
    run(session.job(__doc__))


if __name__ == "__main__":
    errors.run(main)
