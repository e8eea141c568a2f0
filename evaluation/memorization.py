"""Stage `memorization`: what a model says word for word from its training text, and from which pages.

    python evaluation/memorization.py --recipe recipes/demo.yaml --root .crawl2chat/data --of pretrain

Three questions, answered by the exact index of `evaluation/spans.py` over the shards that the model was made from.
Prompted with the beginning of a training document (and, to compare, of a held-out one): for how many tokens does it go
on as the document does? Of what it says freely: what is the longest run of tokens that stands in the shards? Of an
evaluation set: what is the longest run that the shards hold? (Greedy prompts: Carlini et al. 2023, arXiv:2202.07646.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from evaluation import spans
from evaluation.results import parse, publish, spare
from inference.network import load, seed_all
from inference.sampler import Sampler, Sampling, seeds
from pipeline import artifact, command, errors, lines
from pipeline.artifact import Published, Stage
from pipeline.errors import ArtifactError
from pipeline.progress import Progress
from pipeline.recipe import Memorization
from tokenizer.bpe import Tokenizer
from tokenizer.shards import Shard, of_split, sidecar

STAGE = Stage("memorization", 2, libraries=("torch", "transformers"))
SHOWN = 20  # rows of each kind that the results show in full, the longest first


def shards_of(made: Published) -> list[Published]:
    """The shard artifacts that a model was trained on."""
    found = [source for source in artifact.lineage(made.storage, made) if source.content.stage == "shard"]
    if not found:
        raise ArtifactError(f"{made.folder} does not say which shards made it", "name a model of this pipeline")
    return found


def chosen(shards: Sequence[Published], split: str, count: int, least: int, seed: int) -> list[dict[str, Any]]:
    """`count` documents of a split with at least so many tokens, by a hash of (seed, id): `id`, `url`, `ids`."""
    found: list[tuple[str, Path, str, str, int, int]] = []
    for source in shards:
        folder = source.on_disk(".bin", ".idx")
        for name in of_split(source, split):
            with source.storage.reading(source.file(sidecar(name))) as stream:
                rows = pq.read_table(stream, columns=["id", "url", "start", "tokens"]).to_pylist()
            for row in rows:
                key = hashlib.sha256(f"{seed}:memorization:{row['id']}".encode()).hexdigest()
                if row["tokens"] >= least:
                    found.append((key, folder / name, row["id"], row["url"], row["start"], row["tokens"]))
            found = sorted(found)[:count]
    tokens = {file: Shard(file).tokens for file in {file for _, file, *_ in found}}
    return [
        {"id": document, "url": url, "ids": tokens[file][start : start + size].tolist()}
        for _, file, document, url, start, size in found
    ]


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences share from their beginning."""
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def questions(file: str) -> Iterator[str]:
    """The questions of an evaluation set, a line each."""
    return map("\n".join, lines.texts(file, "check memorization.sets"))


class Measurement:
    """The measurements of one model."""

    def __init__(
        self, sampler: Sampler, index: spans.Index, shards: Sequence[Published], recipe: Memorization, seed: int
    ) -> None:
        self.sampler, self.index, self.shards, self.recipe, self.seed = sampler, index, shards, recipe, seed

    def continuations(self, split: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Documents of a split, gone on with greedily: tokens verbatim, and the longest span of the answer."""
        recipe, tokenizer = self.recipe, self.sampler.tokenizer
        found = chosen(self.shards, split, recipe.documents, recipe.prompt_tokens + recipe.new_tokens, self.seed)
        prompts = [row["ids"][: recipe.prompt_tokens] for row in found]
        said = [one.ids for one in self.sampler.many(prompts, Sampling(recipe.new_tokens), [0] * len(prompts))]
        rows = []
        for row, prompt, ids, span in zip(found, prompts, said, self.index.spans(said), strict=True):
            verbatim = common(ids, row["ids"][len(prompt) :])
            rows.append(
                {
                    "document": row["id"],
                    "url": row["url"],
                    "prompt": tokenizer.decode(prompt),
                    "verbatim": verbatim,
                    "text": tokenizer.decode(ids[:verbatim]),
                    "answer": tokenizer.decode(ids),
                    "longest_span": span.length,
                }
            )
        lengths = [row["verbatim"] for row in rows]
        return self._numbers(split, lengths), _longest_first(rows, "verbatim")

    def free(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Samples at temperature 1 from the beginning of a page: the longest span of each, and whose it is."""
        tokenizer, count = self.sampler.tokenizer, self.recipe.free_samples
        drawn = seeds(f"{self.seed}:memorization", count)
        found = self.sampler.many([[tokenizer.end_of_text]] * count, Sampling(self.recipe.new_tokens, 1.0), drawn)
        ids = [[token for token in one.ids if token != tokenizer.end_of_text] for one in found]
        rows = self._rows(ids, self.index.spans(ids))
        return self._numbers("free", [row["tokens"] for row in rows]), _longest_first(rows, "tokens")

    def contamination(self, file: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The questions of an evaluation set: the longest span of each that the shards hold."""
        ids = [self.sampler.tokenizer.encode(text) for text in questions(file)]
        rows = self._rows(ids, self.index.spans(ids))
        return self._numbers("contamination", [row["tokens"] for row in rows]), _longest_first(rows, "tokens")

    def _rows(self, ids: Sequence[Sequence[int]], found: Sequence[spans.Span]) -> list[dict[str, Any]]:
        return [
            {
                "tokens": span.length,
                "of": len(one),
                "times": span.times,
                "document": span.document,
                "url": span.url,
                "text": self.sampler.tokenizer.decode(one[span.start : span.start + span.length]),
            }
            for one, span in zip(ids, found, strict=True)
        ]

    def _numbers(self, name: str, lengths: list[int]) -> dict[str, Any]:
        """Mean and largest length, and the share of those that count as recited; None where there are none."""
        if not lengths:
            return {f"{name}_samples": 0}
        return {
            f"{name}_samples": len(lengths),
            f"{name}_mean": round(float(np.mean(lengths)), 3),
            f"{name}_longest": max(lengths),
            f"{name}_recited": round(float(np.mean([length >= self.recipe.recited for length in lengths])), 6),
        }


def _longest_first(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: -row[key])[:SHOWN]


def main() -> None:
    """Entry point."""
    job, of = parse(__doc__)
    if spare():
        return
    recipe = job.recipe.memorization
    assets = {file: hashlib.sha256("\n".join(questions(file)).encode()).hexdigest() for file in recipe.sets}
    seed_all(job.recipe.seed)
    source = command.source(job, of)
    shards = shards_of(source)
    building = command.open_stage(job, STAGE, [source, *shards], assets, f"memorization-{of}")
    if isinstance(building, Published):
        return
    progress = Progress(building.storage, building.progress_folder, STAGE.name, "part")
    index = spans.build(job.storage, job.run, shards)
    folder = source.on_disk()
    network = load(folder).to("cuda" if torch.cuda.is_available() else "cpu")
    measured = Measurement(Sampler(network, Tokenizer.load(folder)), index, shards, recipe, job.recipe.seed)
    parts = {
        "train": lambda: measured.continuations("train"),
        "validation": lambda: measured.continuations("validation"),
        "free": measured.free,
    }
    results: dict[str, Any] = {"numbers": {}, "sets": {}}
    for done, (name, measure) in enumerate(parts.items(), 1):
        numbers, results[name] = measure()
        results["numbers"] |= numbers
        progress(done, len(parts) + len(recipe.sets), **numbers)
    for done, file in enumerate(recipe.sets, len(parts) + 1):
        numbers, rows = measured.contamination(file)
        results["sets"][file] = numbers | {"rows": rows}
        progress(done, len(parts) + len(recipe.sets), **numbers)
    publish(building, results)
    print(json.dumps(results["numbers"]), flush=True)
    for row in results["free"][:3]:
        print(f"{row['tokens']} tokens of {row['url']}: {row['text']!r}", flush=True)


if __name__ == "__main__":
    errors.run(main)
