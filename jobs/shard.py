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

from jobs.stage import decisions, parts, session
from jobs.stage.parts import Part, State
from jobs.stage.table import read_rows, read_table, write_table
from pipeline import artifact, command, errors
from pipeline.artifact import Building, Counts, Published, Stage
from pipeline.command import Job
from pipeline.numbers import ShardNumbers, TokenizerNumbers
from pipeline.storage import Storage
from tokenizer import bpe, shards

STAGE = Stage("shard", 3, ("fastokens", "tokenizers"))
SPLITS = ("train", "validation")
# More of the same is worth little (Muennighoff et al. 2023, "Scaling Data-Constrained Language Models").
MOST_EPOCHS = 4
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


@dataclass(frozen=True)
class Tokens(Part):
    """A part's file of tokens, of which another `copy` is to be made."""

    tokens: str
    copy: int


@dataclass(frozen=True)
class Tokenization:
    """Writes ids of documents, with the keys that place them. `tokenizer`: file of the one to use."""

    storage: Storage
    work_folder: str
    tokenizer: str
    seed: int
    validation: float

    def file(self, name: str) -> str:
        """File of a part's tokens."""
        return f"{self.work_folder}/tokens/part-{name}.parquet"

    def work(self, part: decisions.Decided) -> Iterator[State]:
        """One part: ids of each document, `<|endoftext|>` last, with the key that places it."""
        encoder = bpe.Tokenizer.from_bytes(self.storage.read(self.tokenizer))
        dtype = shards.dtype_for(encoder.vocabulary)
        rows: list[dict[str, Any]] = []
        tokens = dict.fromkeys(SPLITS, 0)
        for row in decisions.kept(self.storage, part, ("url", "warc", "offset", "text")):
            text = row.pop("text")
            ids = np.array([*encoder.encode(text), encoder.end_of_text], dtype=dtype)
            row["key"], row["split"] = place(self.seed, row["id"], self.validation)
            row["ids"], row["size"], row["bytes"] = ids.tobytes(), len(ids), len(text.encode())
            tokens[row["split"]] += len(ids)
            rows.append(row)
            if len(rows) % 1000 == 0:
                yield {"done": len(rows)}
        rows.sort(key=lambda row: row["key"])
        write_table(self.storage, self.file(part.name), rows, _TOKENIZED)
        train = sum(row["split"] == "train" for row in rows)
        yield {"commit": {"documents": len(rows), "train_documents": train, "tokens": tokens}}

    def copy(self, part: Tokens) -> Iterator[State]:
        """Another copy of a part's training documents, each in another place."""
        rows = list(read_rows(self.storage, part.tokens, where=[("split", "=", "train")]))
        for row in rows:
            row["key"], _ = place(self.seed, row["id"], 0.0, part.copy)
        rows.sort(key=lambda row: row["key"])
        write_table(self.storage, self.file(part.name), rows, _TOKENIZED)
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
        write_table(storage, f"{wanted.folder}/{shards.sidecar(name)}", rows, shards.SIDECAR)
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


def corpora(job: Job) -> list[Corpus]:
    """This run's corpus, and those that the recipe mixes in."""
    mix = job.recipe.shard.mix
    redacted, decided = command.upstream(job, "redact"), command.upstream(job, "decontaminate")
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
    tokenization: Tokenization,
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
            files = [tokenization.file(f"{name}-{copy}" if copy else name) for name in names]
            if copy:
                again = [Tokens(f"{name}-{copy}", tokenization.file(name), copy) for name in names]
                parts.run_parts(spark, building, again, tokenization.copy, "copy")
            until, last, before = cut(building.storage, files, rest) if rest and copy == whole else (None, 0, 0)
            if until and not copy:
                beyond += sum(tokenized[name]["train_documents"] for name in names) - before - 1
            pieces += [(file, until, last) for file in files]
        mixed[corpus.name] = {"tokens": budget, "epochs": round(budget / has, 4) if has else 0.0}
    return pieces, mixed, beyond


def run(job: Job) -> Published:
    """The stage."""
    recipe, storage = job.recipe.shard, job.storage
    tokenizer, given = command.upstream(job, "tokenizer"), corpora(job)
    sources = [source for corpus in given for source in (corpus.redacted, corpus.decided)]
    building = command.open_stage(job, STAGE, [*sources, tokenizer])
    if isinstance(building, Published):
        return building
    known = TokenizerNumbers.of(tokenizer)
    tokenization = Tokenization(storage, building.work, tokenizer.file(bpe.FILE), job.recipe.seed, recipe.validation)
    todo = [
        part
        for number, corpus in enumerate(given)
        for part in decisions.aligned(corpus.redacted, corpus.decided, f"{number:03d}-")
    ]
    spark = session.spark("shard")
    tokenized = parts.run_parts(spark, building, todo, tokenization.work, "tokenize")
    seconds = parts.cpu_seconds(tokenized, spark)
    pieces, mixed, beyond = select(spark, building, given, tokenized, tokenization, recipe.train_tokens)
    tokens = {
        "train": sum(corpus["tokens"] for corpus in mixed.values()),
        "validation": sum(record["tokens"]["validation"] for record in tokenized.values()),
    }
    if not tokens["train"] or not tokens["validation"]:
        raise errors.InputError(
            f"too little is left for both splits: {tokens}", "loosen the filters, add WARCs, or raise shard.validation"
        )
    dtype = shards.dtype_for(known.vocabulary)
    counts = {split: 1 << max(0, math.ceil(math.log2(tokens[split] / recipe.shard_tokens))) for split in SPLITS}
    assembled = assemble(spark, building, pieces, Shards(counts, dtype.name, building.pointer.folder))
    of_split = {split: [one for name, one in assembled.items() if name.startswith(split)] for split in SPLITS}
    numbers = ShardNumbers(
        dtype=dtype.name,
        vocabulary=known.vocabulary,
        tokenizer=known.sha256,
        train_tokens=tokens["train"],
        train_bytes=sum(record["bytes"] for record in of_split["train"]),
        validation_tokens=tokens["validation"],
        validation_bytes=sum(record["bytes"] for record in of_split["validation"]),
    )
    for_people = {"shards": len(assembled), "corpora": mixed} | {
        f"{split}_documents": sum(record["documents"] for record in records) for split, records in of_split.items()
    }
    came = sum(corpus.decided.content.counts.kept for corpus in given if corpus.decided.content.counts)
    documents = sum(record["documents"] for record in tokenized.values())
    published = building.publish(
        [artifact.File(**file) for record in assembled.values() for file in record["files"]],
        Counts(in_=came, kept=documents - beyond, dropped={"beyond_budget": beyond} if beyond else {}),
        numbers.plain() | for_people,
        cpu_seconds=seconds + parts.cpu_seconds(assembled, None),
    )
    spark.stop()
    return published


def main() -> None:
    """Entry point."""
    run(command.parse(__doc__))


if __name__ == "__main__":
    errors.run(main)
