"""Token shards: documents are tokenized, distributed over shards by hash, and sorted by hash within each.

    spark-submit jobs/shard.py --recipe recipes/demo.yaml --root .crawl2chat/data

The number of a document's shard is the leading bits of a hash of (seed, id), so the shuffle is exact, and the same for
any order and number of parts. Spark moves the token ids to their shards and sorts them there; each is written as it
arrives. Files: `<split>-<shard>.bin/.idx` (Megatron) and `<split>-<shard>.documents.parquet`, which records which
tokens came from which document and URL.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

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

STAGE = Stage("shard", 4, ("fastokens", "tokenizers"))
SPLITS = ("train", "validation")
# Beyond four epochs repeated tokens add little (Muennighoff et al. 2023, "Scaling Data-Constrained Language Models").
MOST_EPOCHS = 4
_TOKENIZED = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "split", "id", "url", "warc", "license")),
        *((name, pa.int64()) for name in ("offset", "size", "bytes")),
        ("ids", pa.binary()),
    ]
)
_MOVED = pa.schema(
    [
        ("target", pa.int32()),
        *((name, pa.string()) for name in ("key", "id", "url", "warc", "license")),
        *((name, pa.int64()) for name in ("offset", "bytes")),
        ("ids", pa.binary()),
    ]
)
Records = dict[str, dict[str, Any]]  # by name: of a part, a shard, a corpus
_BATCH = 1000  # documents per Arrow batch for the JVM: some megabytes


def place(seed: int, document: str, validation: float, copy: int = 0) -> tuple[str, str]:
    """(key, split) of a document. The key, a 128-bit hash in hex, decides its shard and its place there; another hash
    decides the split. Each further `copy` of a document has a key of its own.
    """
    suffix = f":{copy}" if copy else ""
    key = xxhash.xxh3_128_hexdigest(f"{seed}:shard:{document}{suffix}".encode())
    draw = xxhash.xxh3_64_intdigest(f"{seed}:split:{document}".encode()) / 2**64
    return key, "validation" if draw < validation else "train"


@dataclass(frozen=True)
class Tokens(Part):
    """A part's file of tokens, of which copy number `copy` is to be made."""

    tokens: str
    copy: int


@dataclass(frozen=True)
class Tokenization:
    """Writes the token ids of documents, with the keys that place them. `tokenizer`: file of the tokenizer."""

    storage: Storage
    work_folder: str
    tokenizer: str
    seed: int
    validation: float

    def file(self, name: str) -> str:
        """File of a part's tokens."""
        return f"{self.work_folder}/tokens/part-{name}.parquet"

    def work(self, part: decisions.Decided) -> Iterator[State]:
        """Write the token ids of each document of a part, `<|endoftext|>` last, with the key that places it."""
        encoder = bpe.Tokenizer.from_bytes(self.storage.read(self.tokenizer))
        dtype = shards.dtype_for(encoder.vocabulary)
        rows: list[dict[str, Any]] = []
        tokens = dict.fromkeys(SPLITS, 0)
        for row in decisions.kept(self.storage, part, ("url", "warc", "license", "offset", "text")):
            text = row.pop("text")
            ids = np.array([*encoder.encode(text), encoder.end_of_text], dtype=dtype)
            row["key"], row["split"] = place(self.seed, row["id"], self.validation)
            row["ids"], row["size"], row["bytes"] = ids.tobytes(), len(ids), len(text.encode())
            tokens[row["split"]] += len(ids)
            rows.append(row)
            if len(rows) % 1000 == 0:
                yield parts.ALIVE
        rows.sort(key=lambda row: row["key"])
        write_table(self.storage, self.file(part.name), rows, _TOKENIZED)
        train = sum(row["split"] == "train" for row in rows)
        yield {"commit": {"documents": len(rows), "train_documents": train, "tokens": tokens}}

    def copy(self, part: Tokens) -> Iterator[State]:
        """Write another copy of a part's training documents, with other keys."""
        rows = list(read_rows(self.storage, part.tokens, where=[("split", "=", "train")]))
        for row in rows:
            row["key"], _ = place(self.seed, row["id"], 0.0, part.copy)
        rows.sort(key=lambda row: row["key"])
        write_table(self.storage, self.file(part.name), rows, _TOKENIZED)
        yield {"commit": {"documents": len(rows)}}


def cut(storage: Storage, files: list[str], budget: int) -> tuple[str, int, int]:
    """Where the training documents of these files, in the order of their keys, reach `budget` tokens.

    Returns the key of the last document, how many of its tokens are taken, and how many documents precede it.
    """
    train = [("split", "=", "train")]
    table = pa.concat_tables(read_table(storage, file, ["key", "size"], train) for file in files).sort_by("key")
    ends = pc.cumulative_sum(table["size"]).to_numpy()
    last = int(np.searchsorted(ends, budget))
    before = int(ends[last - 1]) if last else 0
    return table["key"][last].as_py(), budget - before, last


def shard_of(key: str, count: int) -> int:
    """Number of a key's shard among `count`, a power of two: the leading bits of the key."""
    return int(key[:8], 16) * count >> 32


@dataclass(frozen=True)
class Shards:
    """What `assemble` makes: how many shards each split has, the dtype of token ids, and their folder."""

    counts: dict[str, int]
    dtype: str
    folder: str

    def names(self) -> list[str]:
        """`train-00000` and so on."""
        return [f"{split}-{i:05d}" for split, count in self.counts.items() for i in range(count)]

    def name_of(self, split: str, key: str) -> str:
        """The shard of a document."""
        return f"{split}-{shard_of(key, self.counts[split]):05d}"


class Piece(NamedTuple):
    """A file of tokens that shards are made of; of its training documents those up to a key, if there is one."""

    file: str
    until: str | None  # key of the last training document; "", which precedes every key, for none of them
    last: int  # how many tokens of that document are taken


@dataclass(frozen=True)
class Assembly:
    """Brings documents into their shards: `spread` reads and addresses them, `write` receives one shard's, in order."""

    storage: Storage
    work: str
    shards: Shards
    missing: list[str]  # names of the shards that are not yet committed

    def spread(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The documents of the pieces in `batches`, with `target`: the index of their shard in `missing`."""
        targets = {name: number for number, name in enumerate(self.missing)}
        columns = [field.name for field in _MOVED if field.name != "target"]
        itemsize = np.dtype(self.shards.dtype).itemsize
        for piece in (Piece(**row) for batch in batches for row in batch.to_pylist()):
            for split in SPLITS:
                until = piece.until if split == "train" else None
                where = [("split", "=", split), *([("key", "<=", until)] if until is not None else [])]
                moved: list[dict[str, Any]] = []
                for row in read_rows(self.storage, piece.file, columns, where):
                    row["target"] = targets.get(self.shards.name_of(split, row["key"]))
                    if row["key"] == until:  # cut, and its bytes of text in proportion
                        row["bytes"] = row["bytes"] * piece.last * itemsize // len(row["ids"])
                        row["ids"] = row["ids"][: piece.last * itemsize]
                    if row["target"] is not None:
                        moved.append(row)
                    if len(moved) == _BATCH:
                        yield pa.RecordBatch.from_pylist(moved, schema=_MOVED)
                        moved = []
                yield pa.RecordBatch.from_pylist(moved, schema=_MOVED)

    def write(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Write and commit one shard: its documents as they arrive, then its index and its sidecar."""
        before, name = parts.cpu(), self.missing[TaskContext.get().partitionId()]
        dtype, folder = np.dtype(self.shards.dtype), self.shards.folder
        rows: list[dict[str, Any]] = []
        start = 0
        with self.storage.writing(f"{folder}/{name}.bin") as stream:
            for row in (row for batch in batches for row in batch.to_pylist()):
                ids = row.pop("ids")
                stream.write(ids)
                size = len(ids) // dtype.itemsize
                rows.append(row | {"document": len(rows), "start": start, "tokens": size})
                start += size
        self.storage.write(f"{folder}/{name}.idx", shards.index([row["tokens"] for row in rows], dtype))
        write_table(self.storage, f"{folder}/{shards.sidecar(name)}", rows, shards.SIDECAR)
        counts = {".bin": start, ".idx": len(rows), ".documents.parquet": len(rows)}
        files = [artifact.describe(self.storage, folder, name + end, n).model_dump() for end, n in counts.items()]
        record = {"files": files, "bytes": sum(row["bytes"] for row in rows), "documents": len(rows)}
        record |= {"cpu_seconds": round(parts.cpu() - before, 3)}
        artifact.commit(self.storage, self.work, f"shard-{name}", record)
        yield pa.RecordBatch.from_pydict({"part": [name]})


def assemble(spark: SparkSession, building: Building, pieces: list[Piece], wanted: Shards) -> Records:
    """Bring the documents of all pieces into their shards. Returns the shards' records, by name."""
    names, committed = wanted.names(), set(building.committed())
    missing = [name for name in names if f"shard-{name}" not in committed]
    assembly = Assembly(building.storage, building.work, wanted, missing)
    with parts.followed(building, names, "shard"):
        if missing:
            # Plain tuples: workers cannot unpickle a class of the script that spark-submit runs.
            rows = spark.sparkContext.parallelize([tuple(piece) for piece in pieces], len(pieces))
            listed = spark.createDataFrame(rows, "file string, until string, last bigint")
            moved = listed.mapInArrow(assembly.spread, from_arrow_schema(_MOVED))
            shuffled = moved.repartitionById(len(missing), F.col("target"))
            # Corpora that are mixed may hold the same document, which has the same key in both.
            in_order = shuffled.sortWithinPartitions("key", "warc", "offset", "ids")
            in_order.mapInArrow(assembly.write, "part string").collect()
    records = building.commits({f"shard-{name}" for name in names})
    return {name: records[f"shard-{name}"] for name in sorted(names)}


@dataclass(frozen=True)
class Corpus:
    """A corpus to be sharded: the artifacts of redact and decontaminate, and its share of the training tokens."""

    name: str
    redacted: Published
    decided: Published
    share: float


def corpora(job: Job) -> list[Corpus]:
    """This run's corpus, and those that the recipe mixes in."""
    mix = job.recipe.shard.mix
    redacted, decided = command.upstream(job, "redact"), command.upstream(job, "decontaminate")
    all_corpora = [Corpus("own", redacted, decided, 1 - sum(mix.values()))]
    for folder, share in mix.items():
        decided = artifact.read(job.storage, folder)
        if decided.content.stage != "decontaminate":
            raise errors.RecipeError(
                f"shard.mix: {folder} was made by {decided.content.stage}", "name artifacts of decontaminate"
            )
        redacted = artifact.read(job.storage, decided.content.inputs[0].location)
        all_corpora.append(Corpus(folder, redacted, decided, share))
    return all_corpora


def budgets(mixed: list[Corpus], tokens: list[int], total: int) -> list[int]:
    """Training tokens to take from each corpus: its share of `total`, and together exactly that.

    `tokens`: how many each has. Raises `RecipeError` for one that would be repeated more than `MOST_EPOCHS` times.
    """
    # Sums are rounded, not shares: else the rounded shares of the others could exceed the total.
    sums = [round(total * share) for share in itertools.accumulate(corpus.share for corpus in mixed[1:])]
    others = [after - before for before, after in itertools.pairwise([0, *sums])]
    wanted = [total - sum(others), *others]
    for corpus, available, budget in zip(mixed, tokens, wanted, strict=True):
        if budget > MOST_EPOCHS * available:
            raise errors.RecipeError(
                f"shard.train_tokens: {budget:,} tokens of {corpus.name} are asked for, and it holds {available:,}",
                f"ask for at most {MOST_EPOCHS} times what it holds, or add WARCs",
            )
    return wanted


@dataclass(frozen=True)
class Selection:
    """What the shards are made of."""

    pieces: list[Piece]
    mix: Records  # training tokens and epochs of each corpus, by name
    beyond: int  # documents for which the budget has no room


def select(
    spark: SparkSession,
    building: Building,
    mixed: list[Corpus],
    tokenized: Records,
    tokenization: Tokenization,
    total: int | None,
) -> Selection:
    """Choose the files of tokens that make up `total` training tokens, or all; `tokenized`: records of their parts.

    Of a corpus that is repeated, each further copy is written with other keys. Of one whose share is rounded to no
    token, only the validation documents are taken.
    """
    names_of = [[name for name in tokenized if name.startswith(f"{number:03d}-")] for number in range(len(mixed))]
    available = [sum(tokenized[name]["tokens"]["train"] for name in names) for names in names_of]
    pieces: list[Piece] = []
    mix: Records = {}
    beyond = 0
    wanted = budgets(mixed, available, total) if total else available
    for names, corpus, tokens, budget in zip(names_of, mixed, available, wanted, strict=True):
        epochs, rest = divmod(budget, tokens) if tokens else (0, 0)
        for copy in range(max(1, epochs + (rest > 0))):
            files = [tokenization.file(f"{name}-{copy}" if copy else name) for name in names]
            if copy:
                again = [Tokens(f"{name}-{copy}", tokenization.file(name), copy) for name in names]
                parts.run_parts(spark, building, again, tokenization.copy, "copy")
            until, last, before = ("", 0, -1) if not budget else (None, 0, 0)
            if rest and copy == epochs:
                until, last, before = cut(building.storage, files, rest)
            if until is not None and not copy:
                beyond += sum(tokenized[name]["train_documents"] for name in names) - before - 1
            pieces += [Piece(file, until, last) for file in files]
        mix[corpus.name] = {"tokens": budget, "epochs": round(budget / tokens, 4) if tokens else 0.0}
    return Selection(pieces, mix, beyond)


def run(job: Job) -> Published:
    """Tokenize every document, select the training tokens, assemble the shards, publish."""
    recipe, storage = job.recipe.shard, job.storage
    tokenizer, mixed = command.upstream(job, "tokenizer"), corpora(job)
    sources = [source for corpus in mixed for source in (corpus.redacted, corpus.decided)]
    building = command.open_stage(job, STAGE, [*sources, tokenizer])
    if isinstance(building, Published):
        return building
    # 1. Token ids of every document, part by part.
    of_tokenizer = TokenizerNumbers.of(tokenizer)
    tokenization = Tokenization(storage, building.work, tokenizer.file(bpe.FILE), job.recipe.seed, recipe.validation)
    of_corpora = (decisions.aligned(each.redacted, each.decided, f"{n:03d}-") for n, each in enumerate(mixed))
    texts = [part for corpus in of_corpora for part in corpus]
    building.restore("tokens", "tokenize", "copy")
    spark = session.spark("shard")
    tokenized = parts.run_parts(spark, building, texts, tokenization.work, "tokenize")
    seconds = parts.cpu_seconds(tokenized, spark)
    # 2. Which of them the shards hold.
    selection = select(spark, building, mixed, tokenized, tokenization, recipe.train_tokens)
    tokens = {
        "train": sum(corpus["tokens"] for corpus in selection.mix.values()),
        "validation": sum(record["tokens"]["validation"] for record in tokenized.values()),
    }
    if not tokens["train"] or not tokens["validation"]:
        remedy = "loosen the filters, add WARCs, or raise shard.validation"
        raise errors.InputError(f"too little is left for both splits: {tokens}", remedy)
    # 3. The shards.
    dtype = shards.dtype_for(of_tokenizer.vocabulary)
    # Powers of two: the leading bits of a key are the number of its shard.
    counts = {split: 1 << max(0, math.ceil(math.log2(tokens[split] / recipe.shard_tokens))) for split in SPLITS}
    records = assemble(spark, building, selection.pieces, Shards(counts, dtype.name, building.pointer.folder))
    seconds += parts.cpu_seconds(records, None)
    documents = sum(record["documents"] for record in tokenized.values())
    published = building.publish(
        [artifact.File(**file) for record in records.values() for file in record["files"]],
        Counts(
            in_=sum(corpus.decided.content.counts.kept for corpus in mixed if corpus.decided.content.counts),
            kept=documents - selection.beyond,
            dropped={"beyond_budget": selection.beyond} if selection.beyond else {},
        ),
        numbers(of_tokenizer, tokens, selection.mix, records),
        cpu_seconds=seconds,
    )
    building.discard("tokens")
    spark.stop()
    return published


def numbers(tokenizer: TokenizerNumbers, tokens: dict[str, int], mix: Records, records: Records) -> dict[str, Any]:
    """Numbers of the manifest. `tokens`: of each split; `mix`: see `Selection`; `records`: of the shards."""
    of_split = {split: [record for name, record in records.items() if name.startswith(split)] for split in SPLITS}
    typed = ShardNumbers(
        dtype=shards.dtype_for(tokenizer.vocabulary).name,
        vocabulary=tokenizer.vocabulary,
        tokenizer=tokenizer.sha256,
        train_tokens=tokens["train"],
        train_bytes=sum(record["bytes"] for record in of_split["train"]),
        validation_tokens=tokens["validation"],
        validation_bytes=sum(record["bytes"] for record in of_split["validation"]),
    )
    documents = {f"{split}_documents": sum(record["documents"] for record in some) for split, some in of_split.items()}
    return typed.plain() | {"shards": len(records), "corpora": mix} | documents


def main() -> None:
    job = command.parse(__doc__)
    with command.recording(job, STAGE.name):
        run(job)


if __name__ == "__main__":
    errors.run(main)
