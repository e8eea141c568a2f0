"""Token shards: documents tokenized, spread over shards by hash, sorted by hash within.

    spark-submit jobs/shard.py --recipe recipes/demo.yaml --root .crawl2chat/data

A document's shard is the leading bits of a hash of (seed, id), so the shuffle is exact, and the same whatever the order
and number of parts. Spark moves the ids to their shards and sorts them there; each is written as it arrives.
Files: `<split>-<shard>.bin/.idx` (Megatron) and `<split>-<shard>.documents.parquet`, which says which tokens came from
which document and URL.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pyspark import TaskContext
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from jobs import parts, session
from jobs.decontaminate import aligned, stays
from jobs.table import read_rows, read_table, write_table
from pipeline import artifact, errors
from pipeline.artifact import Building, Counts, Published, Stage
from pipeline.storage import Storage
from tokenizer import bpe, shards

STAGE = Stage("shard", 3, ("fastokens", "tokenizers"))
SPLITS = ("train", "validation")
MOST_EPOCHS = (
    4  # more of the same is worth little (Muennighoff et al. 2023, "Scaling Data-Constrained Language Models")
)
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
        ("size", pa.int64()),
        ("bytes", pa.int64()),
        ("ids", pa.binary()),
    ]
)


_MOVED = pa.schema(
    [
        ("target", pa.int32()),
        *((name, pa.string()) for name in ("key", "id", "url", "warc")),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("ids", pa.binary()),
    ]
)
_BATCH = 1000  # documents of a batch on its way to the JVM: some megabytes


def place(seed: int, document: str, validation: float, copy: int = 0) -> tuple[str, str]:
    """(key, split) of a document: 128-bit hash in hex, whose leading bits are its shard, and the split by another.

    Another `copy` of it has another key.
    """
    again = f":{copy}" if copy else ""
    key = xxhash.xxh3_128_hexdigest(f"{seed}:shard:{document}{again}".encode())
    draw = xxhash.xxh3_64_intdigest(f"{seed}:split:{document}".encode()) / 2**64
    return key, "validation" if draw < validation else "train"


def tokenize_part(name: str, payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One part: ids of each document, `<|endoftext|>` last, with the key that places it."""
    storage = Storage(payload["root"])
    encoder = bpe.Tokenizer.from_bytes(storage.read(payload["tokenizer"]))
    dtype = shards.dtype_for(encoder.vocabulary)
    rows: list[dict[str, Any]] = []
    tokens = dict.fromkeys(SPLITS, 0)
    for row in stays(storage, payload["redact"], payload["decided"], ("id", "url", "warc", "offset", "text")):
        text = row.pop("text")
        ids = np.array([*encoder.encode(text), encoder.end_of_text], dtype=dtype)
        row["key"], row["split"] = place(payload["seed"], row["id"], payload["validation"])
        row["ids"], row["size"], row["bytes"] = ids.tobytes(), len(ids), len(text.encode())
        tokens[row["split"]] += len(ids)
        rows.append(row)
        if len(rows) % 1000 == 0:
            yield {"done": len(rows)}
    rows.sort(key=lambda row: row["key"])
    write_table(storage, f"{payload['work']}/tokens/part-{name}.parquet", rows, _TOKENIZED)
    train = sum(row["split"] == "train" for row in rows)
    yield {"commit": {"documents": len(rows), "train_documents": train, "tokens": tokens}}


def copy_part(name: str, payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Another copy of a part's training documents, each in another place."""
    storage = Storage(payload["root"])
    rows = list(read_rows(storage, payload["tokens"], where=[("split", "=", "train")]))
    for row in rows:
        row["key"], _ = place(payload["seed"], row["id"], 0.0, payload["copy"])
    rows.sort(key=lambda row: row["key"])
    write_table(storage, f"{payload['work']}/tokens/part-{name}.parquet", rows, _TOKENIZED)
    yield {"commit": {"documents": len(rows)}}


def cut(storage: Storage, files: list[str], budget: int) -> tuple[str, int, int]:
    """Where the training documents of these files, in the order of their keys, make up `budget` tokens.

    Returns the key of the last document, how many of its tokens still count, and how many documents come before it.
    """
    train = [("split", "=", "train")]
    table = pa.concat_tables(read_table(storage, file, ["key", "size"], train) for file in files).sort_by("key")
    ends = pc.cumulative_sum(table["size"]).to_numpy()
    last = int(np.searchsorted(ends, budget))
    before = int(ends[last - 1]) if last else 0
    return table["key"][last].as_py(), budget - before, last


def shard_of(key: str, count: int) -> int:
    """Number of the shard, of a power of two of them: the leading bits of the key."""
    return int(key[:8], 16) * count >> 32


@dataclass(frozen=True)
class Shards:
    """What `assemble` makes: how many shards each split has, of tokens of this type, below `folder`."""

    counts: dict[str, int]
    dtype: str
    folder: str

    def names(self) -> list[str]:
        """`train-00000` and so on."""
        return [f"{split}-{i:05d}" for split, count in self.counts.items() for i in range(count)]

    def name_of(self, split: str, key: str) -> str:
        """The shard of a document."""
        return f"{split}-{shard_of(key, self.counts[split]):05d}"


def assemble(
    spark: SparkSession, building: Building, pieces: list[tuple[str, str | None, int]], wanted: Shards
) -> dict[str, dict[str, Any]]:
    """Bring the documents of all pieces (see `select`) into their shards; the shards' records, by name."""
    storage, work, names, itemsize = building.storage, building.work, wanted.names(), np.dtype(wanted.dtype).itemsize
    done = set(building.committed())
    targets = {name: i for i, name in enumerate(name for name in names if f"shard-{name}" not in done)}
    waiting = list(targets)

    def spread(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for file, until, last in (row.values() for batch in batches for row in batch.to_pylist()):
            for split in SPLITS:
                where = [("split", "=", split), *([("key", "<=", until)] if until and split == "train" else [])]
                moved = []
                for row in read_rows(storage, file, [field.name for field in _MOVED if field.name != "target"], where):
                    row["target"] = targets.get(wanted.name_of(split, row["key"]))
                    if row["key"] == until and split == "train":  # cut, and its bytes in proportion
                        row["bytes"] = row["bytes"] * last * itemsize // len(row["ids"])
                        row["ids"] = row["ids"][: last * itemsize]
                    if row["target"] is not None:
                        moved.append(row)
                    if len(moved) == _BATCH:
                        yield pa.RecordBatch.from_pylist(moved, schema=_MOVED)
                        moved = []
                yield pa.RecordBatch.from_pylist(moved, schema=_MOVED)

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        before, name = parts.cpu(), waiting[TaskContext.get().partitionId()]
        rows: list[dict[str, Any]] = []
        start = 0
        with storage.writing(f"{wanted.folder}/{name}.bin") as stream:
            for row in (row for batch in batches for row in batch.to_pylist()):
                ids = row.pop("ids")
                stream.write(ids)
                size = len(ids) // itemsize
                rows.append(row | {"document": len(rows), "start": start, "tokens": size})
                start += size
        index = shards.index([row["tokens"] for row in rows], np.dtype(wanted.dtype))
        storage.write(f"{wanted.folder}/{name}.idx", index)
        write_table(storage, f"{wanted.folder}/{name}.documents.parquet", rows, SIDECAR)
        held = {".bin": start, ".idx": len(rows), ".documents.parquet": len(rows)}
        files = [artifact.describe(storage, wanted.folder, name + end, n).model_dump() for end, n in held.items()]
        record = {"files": files, "bytes": sum(row["bytes"] for row in rows), "documents": len(rows)}
        artifact.commit(storage, work, f"shard-{name}", record | {"cpu_seconds": round(parts.cpu() - before, 3)})
        yield pa.RecordBatch.from_pydict({"part": [name]})

    with parts.followed(building, names, "shard"):
        if waiting:
            listed = spark.sparkContext.parallelize(pieces, len(pieces))
            found = spark.createDataFrame(listed, "file string, until string, last bigint")
            moved = found.mapInArrow(spread, from_arrow_schema(_MOVED))
            shuffled = moved.repartitionById(len(waiting), F.col("target"))
            # Corpora that are mixed may hold the same document, which has the same key in both.
            sorted_ = shuffled.sortWithinPartitions("key", "warc", "offset", "ids")
            sorted_.mapInArrow(write, "part string").collect()
    records = building.commits({f"shard-{name}" for name in names})
    return {name: records[f"shard-{name}"] for name in sorted(names)}


@dataclass(frozen=True)
class Corpus:
    """Documents that are to be sharded: the artifacts, and their share of the training tokens."""

    name: str
    redacted: Published
    decided: Published
    share: float


def corpora(job: session.Job) -> list[Corpus]:
    """This run's corpus, and those that the recipe mixes in."""
    mix = job.recipe.shard.mix
    redacted, decided = session.upstream(job, "redact"), session.upstream(job, "decontaminate")
    found = [Corpus("own", redacted, decided, 1 - sum(mix.values()))]
    for folder, share in mix.items():
        decided = artifact.read(job.storage, folder)
        if decided.content.stage != "decontaminate":
            raise errors.RecipeError(
                f"shard.mix: {folder} was made by {decided.content.stage}", "name artifacts of decontaminate"
            )
        found.append(Corpus(folder, artifact.read(job.storage, decided.content.inputs[0].location), decided, share))
    return found


def budgets(given: list[Corpus], tokens: list[int], total: int) -> list[int]:
    """Training tokens of each corpus: its share of `total`, and together exactly that.

    Raises `RecipeError` for a corpus that would have to be repeated more than `MOST_EPOCHS` times.
    """
    others = [round(corpus.share * total) for corpus in given[1:]]
    found = [total - sum(others), *others]
    for corpus, held, budget in zip(given, tokens, found, strict=True):
        if budget > MOST_EPOCHS * held:
            raise errors.RecipeError(
                f"shard.train_tokens: {budget:,} tokens of {corpus.name} are asked for, and it holds {held:,}",
                f"ask for at most {MOST_EPOCHS} times what is there, or add WARCs",
            )
    return found


def select(
    spark: SparkSession,
    building: Building,
    given: list[Corpus],
    tokenized: dict[str, dict[str, Any]],
    payload: dict[str, Any],
    total: int | None,
) -> tuple[list[tuple[str, str | None, int]], dict[str, dict[str, Any]], int]:
    """Which files of tokens the shards are made of, and up to where.

    Returns pieces (file, key of the last document that counts or None for all, how many of its tokens count), tokens
    and epochs of each corpus, and how many documents the budget leaves out. Of a corpus that is repeated, each further
    copy is written with other keys.
    """
    of_corpus = [[name for name in tokenized if name.startswith(f"{number:03d}-")] for number in range(len(given))]
    held = [sum(tokenized[name]["tokens"]["train"] for name in names) for names in of_corpus]
    wanted = budgets(given, held, total) if total else held
    pieces: list[tuple[str, str | None, int]] = []
    mixed: dict[str, dict[str, Any]] = {}
    beyond = 0
    for names, corpus, has, budget in zip(of_corpus, given, held, wanted, strict=True):
        whole, rest = divmod(budget, has) if has else (0, 0)
        for copy in range(max(1, whole + (rest > 0))):
            files = [f"{building.work}/tokens/part-{name}{f'-{copy}' if copy else ''}.parquet" for name in names]
            if copy:
                again = [
                    (
                        f"{name}-{copy}",
                        payload | {"tokens": f"{building.work}/tokens/part-{name}.parquet", "copy": copy},
                    )
                    for name in names
                ]
                parts.run_parts(spark, building, again, copy_part, "copy")
            until, last, before = cut(building.storage, files, rest) if rest and copy == whole else (None, 0, 0)
            if until and not copy:
                beyond += sum(tokenized[name]["train_documents"] for name in names) - before - 1
            pieces += [(file, until, last) for file in files]
        mixed[corpus.name] = {"tokens": budget, "epochs": round(budget / has, 4) if has else 0.0}
    return pieces, mixed, beyond


def run(job: session.Job) -> Published:
    """The stage."""
    recipe, storage = job.recipe.shard, job.storage
    tokenizer, given = session.upstream(job, "tokenizer"), corpora(job)
    sources = [source for corpus in given for source in (corpus.redacted, corpus.decided)]
    building = session.open_stage(job, STAGE, [*sources, tokenizer])
    if isinstance(building, Published):
        return building
    payload = {"seed": job.recipe.seed, "root": storage.root, "work": building.work}
    tokenize = payload | {"tokenizer": tokenizer.file(bpe.FILE), "validation": recipe.validation}
    todo = [
        (f"{number:03d}-{name}", tokenize | files)
        for number, corpus in enumerate(given)
        for name, files in aligned(corpus.redacted, corpus.decided)
    ]
    spark = session.spark("shard")
    tokenized = parts.run_parts(spark, building, todo, tokenize_part, "tokenize")
    seconds = parts.cpu_seconds(tokenized, spark)
    pieces, mixed, beyond = select(spark, building, given, tokenized, payload, recipe.train_tokens)
    tokens = {
        "train": sum(corpus["tokens"] for corpus in mixed.values()),
        "validation": sum(record["tokens"]["validation"] for record in tokenized.values()),
    }
    if not tokens["train"] or not tokens["validation"]:
        raise errors.InputError(
            f"too little is left for both splits: {tokens}", "loosen the filters, add WARCs, or raise shard.validation"
        )
    dtype = shards.dtype_for(tokenizer.content.numbers["vocabulary"])
    counts = {split: 1 << max(0, math.ceil(math.log2(tokens[split] / recipe.shard_tokens))) for split in SPLITS}
    assembled = assemble(spark, building, pieces, Shards(counts, dtype.name, building.pointer.folder))
    numbers: dict[str, Any] = {
        "dtype": dtype.name,
        "vocabulary": tokenizer.content.numbers["vocabulary"],
        "tokenizer": tokenizer.content.numbers["sha256"],
        "shards": len(assembled),
        "corpora": mixed,
    }
    for split in SPLITS:
        of_split = [record for name, record in assembled.items() if name.startswith(split)]
        numbers[f"{split}_tokens"] = tokens[split]
        numbers[f"{split}_bytes"] = sum(record["bytes"] for record in of_split)
        numbers[f"{split}_documents"] = sum(record["documents"] for record in of_split)
    came = sum(corpus.decided.content.counts.kept for corpus in given if corpus.decided.content.counts)
    documents = sum(record["documents"] for record in tokenized.values())
    published = building.publish(
        [artifact.File(**file) for record in assembled.values() for file in record["files"]],
        Counts(in_=came, kept=documents - beyond, dropped={"beyond_budget": beyond} if beyond else {}),
        numbers,
        cpu_seconds=seconds + parts.cpu_seconds(assembled, None),
    )
    spark.stop()
    return published


def main() -> None:
    run(session.job(__doc__))


if __name__ == "__main__":
    errors.run(main)
