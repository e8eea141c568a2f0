"""Stage `memorization`: what a model recites word for word from its training text, and from which pages.

    python evaluation/memorization.py --recipe recipes/demo.yaml --root .crawl2chat/data --of pretrain

Three measurements, by the exact index of `evaluation/spans.py` over the shards that the model was trained on:

1. Extraction (Carlini et al. 2023, arXiv:2202.07646): prompted with the beginning of a training document, for how many
   tokens does the greedy continuation equal the document? Validation documents are the control.
2. Free samples: how long is the longest run of tokens in each that occurs in the shards?
3. Contamination: how long is the longest run of each question of an evaluation set that occurs in the shards?
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from evaluation import spans
from evaluation.results import other_rank, parse, publish
from inference.network import load_on_device, seed_all
from inference.sampler import Sampler, Sampling, seeds
from pipeline import artifact, command, errors, lines
from pipeline.artifact import Published, Stage
from pipeline.errors import ArtifactError
from pipeline.progress import Progress
from pipeline.recipe import Memorization
from pipeline.terminal import one_line, show
from tokenizer.bpe import Tokenizer
from tokenizer.shards import Shard, sidecar, split_files

STAGE = Stage("memorization", 2, libraries=("torch", "transformers"))
SHOWN = 20  # examples per measurement in `results.json`, the longest first


def training_shards(model: Published) -> list[Published]:
    """The shard artifacts that a model was trained on, by its lineage."""
    shards = [source for source in artifact.lineage(model.storage, model) if source.content.stage == "shard"]
    if not shards:
        raise ArtifactError(
            f"the manifest of {model.folder} does not say which shards made it",
            "name a model that this pipeline trained",
        )
    return shards


def select_documents(
    shards: Sequence[Published], split: str, count: int, min_tokens: int, seed: int
) -> list[dict[str, Any]]:
    """The first `count` documents of a split by a hash of (seed, id), with `min_tokens` or more: `id`, `url`, `ids`."""
    selected: list[tuple[str, Path, str, str, int, int]] = []
    for source in shards:
        folder = source.on_disk(".bin", ".idx")
        for name in split_files(source, split):
            with source.storage.reading(source.file(sidecar(name))) as stream:
                rows = pq.read_table(stream, columns=["id", "url", "start", "tokens"]).to_pylist()
            for row in rows:
                key = hashlib.sha256(f"{seed}:memorization:{row['id']}".encode()).hexdigest()
                if row["tokens"] >= min_tokens:
                    selected.append((key, folder / name, row["id"], row["url"], row["start"], row["tokens"]))
            # Cut after each file, so that no more than a shard's sidecar is held in memory.
            selected = sorted(selected)[:count]
    tokens = {file: Shard(file).tokens for file in {file for _, file, *_ in selected}}
    return [
        {"id": document, "url": url, "ids": tokens[file][start : start + size].tolist()}
        for _, file, document, url, start, size in selected
    ]


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix of two sequences."""
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def questions(file: str) -> Iterator[str]:
    """The texts of an evaluation set, one per line of the file."""
    return map("\n".join, lines.texts(file, "check memorization.sets"))


class Measurement:
    """The three measurements of one model; each returns numbers for the manifest, and its longest examples."""

    def __init__(
        self, sampler: Sampler, index: spans.Index, shards: Sequence[Published], recipe: Memorization, seed: int
    ) -> None:
        self.sampler, self.index, self.shards, self.recipe, self.seed = sampler, index, shards, recipe, seed

    def continuations(self, split: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Extraction: tokens of a greedy continuation that equal the document, and the longest span of any document."""
        recipe, tokenizer = self.recipe, self.sampler.tokenizer
        # Long enough that a continuation could be verbatim to its last token.
        min_tokens = recipe.prompt_tokens + recipe.new_tokens
        documents = select_documents(self.shards, split, recipe.documents, min_tokens, self.seed)
        prompts = [document["ids"][: recipe.prompt_tokens] for document in documents]
        samples = self.sampler.sample_all(prompts, Sampling(recipe.new_tokens), [0] * len(prompts))
        answers = [sample.ids for sample in samples]
        rows = []
        for document, prompt, ids, span in zip(documents, prompts, answers, self.index.spans(answers), strict=True):
            # Compared with what follows the prompt in this document; `span` may lie in any other.
            verbatim = common_prefix(ids, document["ids"][len(prompt) :])
            rows.append(
                {
                    "document": document["id"],
                    "url": document["url"],
                    "prompt": tokenizer.decode(prompt),
                    "verbatim": verbatim,
                    "text": tokenizer.decode(ids[:verbatim]),
                    "answer": tokenizer.decode(ids),
                    "longest_span": span.length,
                }
            )
        lengths = [row["verbatim"] for row in rows]
        return self._numbers(split, lengths), _longest_first(rows, "verbatim")

    def free_samples(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Samples at temperature 1 without a prompt: the longest span of each, with the document that it occurs in."""
        tokenizer, count = self.sampler.tokenizer, self.recipe.free_samples
        row_seeds = seeds(f"{self.seed}:memorization", count)
        # <|endoftext|> alone starts a document. It is left out of the answers, since every document ends with it.
        samples = self.sampler.sample_all(
            [[tokenizer.end_of_text]] * count, Sampling(self.recipe.new_tokens, 1.0), row_seeds
        )
        ids = [[token for token in sample.ids if token != tokenizer.end_of_text] for sample in samples]
        rows = self._rows(ids, self.index.spans(ids))
        return self._numbers("free", [row["tokens"] for row in rows]), _longest_first(rows, "tokens")

    def contamination(self, file: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Contamination: the longest span of each question of an evaluation set that occurs in the shards."""
        ids = [self.sampler.tokenizer.encode(text) for text in questions(file)]
        rows = self._rows(ids, self.index.spans(ids))
        return self._numbers("contamination", [row["tokens"] for row in rows]), _longest_first(rows, "tokens")

    def _rows(self, texts: Sequence[Sequence[int]], longest: Sequence[spans.Span]) -> list[dict[str, Any]]:
        """One row of the results per text (ids), with its longest span."""
        return [
            {
                "tokens": span.length,
                "of": len(ids),
                "times": span.times,
                "document": span.document,
                "url": span.url,
                "text": self.sampler.tokenizer.decode(ids[span.start : span.start + span.length]),
            }
            for ids, span in zip(texts, longest, strict=True)
        ]

    def _numbers(self, name: str, lengths: list[int]) -> dict[str, Any]:
        """Number, mean and maximum of the lengths, and the share that counts as recited; without any, the number 0."""
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
    if other_rank():
        return
    # 1. Inputs: the model, the shards it was trained on, and the evaluation sets by their text.
    recipe = job.recipe.memorization
    assets = {file: hashlib.sha256("\n".join(questions(file)).encode()).hexdigest() for file in recipe.sets}
    seed_all(job.recipe.seed)
    source = command.source(job, of)
    shards = training_shards(source)
    building = command.open_stage(job, STAGE, [source, *shards], assets, f"memorization-{of}")
    if isinstance(building, Published):
        return
    # 2. The index, built now where it is not published yet, and the model.
    progress = Progress(building.storage, building.progress_folder, STAGE.name, "part")
    index = spans.build(job.storage, job.run, shards)
    folder = source.on_disk()
    network = load_on_device(folder)
    measurement = Measurement(Sampler(network, Tokenizer.load(folder)), index, shards, recipe, job.recipe.seed)
    # 3. Extraction and free samples, by their keys in `results.json`; then contamination, once per set.
    parts = {
        "train": lambda: measurement.continuations("train"),
        "validation": lambda: measurement.continuations("validation"),
        "free": measurement.free_samples,
    }
    results: dict[str, Any] = {"numbers": {}, "sets": {}}
    for done, (name, measure) in enumerate(parts.items(), 1):
        numbers, results[name] = measure()
        results["numbers"] |= numbers
        progress(done, len(parts) + len(recipe.sets), **numbers)
    for done, file in enumerate(recipe.sets, len(parts) + 1):
        numbers, rows = measurement.contamination(file)
        results["sets"][file] = numbers | {"rows": rows}
        progress(done, len(parts) + len(recipe.sets), **numbers)
    # 4. Publish, and print the longest free samples, so that a log shows what was recited.
    publish(building, results)
    print(json.dumps(results["numbers"]), flush=True)
    for row in results["free"][:3]:
        show([f"{row['tokens']} tokens of {one_line(row['url'])}: {row['text']!r}"])


if __name__ == "__main__":
    errors.run(main)
