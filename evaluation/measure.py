"""Stage `evaluation`: what a model can do, measured between the stages, in one process.

    python evaluation/measure.py --recipe recipes/demo.yaml --root .crawl2chat/data --of sft

`--of pretrain|sft|rl` says whose model. `results.json` holds the numbers, the continuations and the conversations.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from evaluation import benchmarks, demonstrations, identity, tasks
from evaluation.results import parse, publish, spare
from evaluation.scorer import Scorer
from inference.network import load, seed_all
from inference.sampler import Sample, Sampler, Sampling, seeds
from inference.tools import named
from pipeline import command, errors
from pipeline.artifact import Published, Stage
from pipeline.progress import Progress
from pipeline.recipe import Evaluation
from pipeline.stages import EVALUATIONS
from tokenizer.bpe import Tokenizer
from tokenizer.chat import Message, prompt, readable

STAGE = Stage("evaluation", 2, libraries=("torch", "transformers"))


class Measurement:
    """What is measured of one model."""

    def __init__(self, sampler: Sampler, recipe: Evaluation, seed: int) -> None:
        self.sampler, self.recipe, self.seed = sampler, recipe, seed

    def sample(self, prompts: list[list[int]], temperature: float, name: str) -> list[Sample]:
        """One answer to each prompt."""
        drawn = seeds(f"{self.seed}:evaluation:{name}", len(prompts))
        return self.sampler.many(prompts, Sampling(self.recipe.max_new_tokens, temperature), drawn)

    def replies(self, users: list[str]) -> list[str]:
        """Greedy answers to single messages, tool calls visible."""
        asked = [prompt([Message(role="user", content=text)], self.sampler.tokenizer) for text in users]
        return [self.sampler.text(row) for row in self.sample(asked, 0.0, "replies")]

    def continuations(self) -> list[dict[str, str]]:
        """Greedy continuations of the recipe's prompts, as of a page."""
        tokenizer = self.sampler.tokenizer
        starts = [tokenizer.encode(text) or [tokenizer.end_of_text] for text in self.recipe.prompts]
        rows = self.sample(starts, 0.0, "continuations")
        return [
            {"prompt": text, "text": self.sampler.text(row)}
            for text, row in zip(self.recipe.prompts, rows, strict=True)
        ]

    def demonstrations(self) -> list[dict[str, str]]:
        """Greedy answers to the recipe's prompts for base models, each up to its stop text."""
        rows = [row for source in self.recipe.demonstrations for row in demonstrations.read(source)]
        made = []
        for row in rows:
            ids, most = self.sampler.tokenizer.encode(row["prompt"]), self.recipe.max_new_tokens
            [one] = self.sampler.sample([ids], Sampling(most, stop=(row["stop"],)), [0])
            made.append(row | {"text": self.sampler.text(one).split(row["stop"])[0]})
        return made

    def benchmarks(self) -> dict[str, float]:
        """The numbers of the recipe's benchmarks, each after its benchmark's name."""
        scorer = Scorer(self.sampler.model, self.sampler.tokenizer)
        return {
            f"{benchmark.name}_{name}": value
            for benchmark in self.recipe.benchmarks
            for name, value in benchmarks.measure(scorer, benchmark).items()
        }

    def chats(self) -> list[dict[str, str]]:
        """Greedy answers to the recipe's messages, as written and as people read them."""
        users = list(self.recipe.chats)
        return [
            {"user": user, "assistant": text, "readable": readable(text)}
            for user, text in zip(users, self.replies(users), strict=True)
        ]

    def task(self, name: str, count: int) -> dict[str, Any]:
        """Accuracy at temperature 1 (mean over samples) and greedy, on questions that no stage has learned from.

        An answer that did not end is wrong. Of the answers at temperature 1: the share that called a tool, how many of
        those and of the others are right (None where there are none), and their length in tokens.
        """
        task = tasks.named(name)
        questions = list(islice(task.questions("held_out", f"{self.seed}:evaluation:{name}"), count))
        asked = [prompt(question.messages(), self.sampler.tokenizer) for question in questions]
        numbers: dict[str, Any] = {"questions": len(questions), "samples": self.recipe.samples}
        for how, temperature, each in (("sampled", 1.0, self.recipe.samples), ("greedy", 0.0, 1)):
            rows = self.sample([ids for ids in asked for _ in range(each)], temperature, f"{name}:{how}")
            repeated = [question for question in questions for _ in range(each)]
            scores = tasks.rewards(task, repeated, [self.sampler.answer(row) for row in rows])
            right = [score if row.finished else 0.0 for score, row in zip(scores, rows, strict=True)]
            numbers[f"{how}_accuracy"] = _mean(right)
            numbers["tool_rate" if how == "sampled" else "greedy_tool_rate"] = _mean([row.tools > 0 for row in rows])
            if how == "sampled":
                pairs = list(zip(right, rows, strict=True))
                numbers["accuracy_with_tool"] = _mean([score for score, row in pairs if row.tools])
                numbers["accuracy_without_tool"] = _mean([score for score, row in pairs if not row.tools])
                numbers["answer_length"] = _mean([len(row.ids) for row in rows])
        return {f"{name}.{number}": value for number, value in numbers.items()}

    def identity(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """How often the name is said where it is asked for, and where it is not, in wordings never trained on."""
        questions = identity.questions()
        answers = self.replies([q["user"] for q in questions])
        rows = [q | {"assistant": answer} for q, answer in zip(questions, answers, strict=True)]
        said = {
            claims: [identity.NAME in row["assistant"] for row in rows if row["claims"] == claims]
            for claims in (True, False)
        }
        return {"identity_said": _mean(said[True]), "identity_wrongly_said": _mean(said[False])}, rows


def _mean(values: list[Any]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None


def measure(
    folder: Path, recipe: Evaluation, tools: Sequence[str], seed: int, progress: Progress | None = None
) -> dict[str, Any]:
    """`results.json` of the model in a folder; `numbers` in it also go to the manifest."""
    network = load(folder).to("cuda" if torch.cuda.is_available() else "cpu")
    measurement = Measurement(Sampler(network, Tokenizer.load(folder), named(tools)), recipe, seed)
    results: dict[str, Any] = {"numbers": {}}
    parts = len(recipe.tasks) + 4

    def report(done: int) -> None:
        if progress:
            progress(done, parts, **{k: v for k, v in results["numbers"].items() if isinstance(v, float)})

    for done, (name, count) in enumerate(recipe.tasks.items(), 1):
        results["numbers"] |= measurement.task(name, count)
        report(done)
    numbers, results["identity"] = measurement.identity()
    results["numbers"] |= numbers
    report(parts - 3)
    results["continuations"] = measurement.continuations()
    report(parts - 2)
    results["chats"] = measurement.chats()
    report(parts - 1)
    results["numbers"] |= measurement.benchmarks()
    results["demonstrations"] = measurement.demonstrations()
    report(parts)
    return results


def main() -> None:
    """Entry point."""
    job, of = parse(__doc__)
    if spare():
        return
    seed_all(job.recipe.seed)
    source = command.source(job, of)
    assets = identity.assets() | demonstrations.assets(job.recipe.evaluation)
    building = command.open_stage(job, STAGE, [source], assets, EVALUATIONS[of].name)
    if isinstance(building, Published):
        return
    folder = source.on_disk()
    progress = Progress(building.storage, building.progress_folder, STAGE.name, "part")
    results = measure(folder, job.recipe.evaluation, job.recipe.assistant.tools, job.recipe.seed, progress)
    publish(building, results)
    print(json.dumps(results["numbers"]), flush=True)


if __name__ == "__main__":
    errors.run(main)
