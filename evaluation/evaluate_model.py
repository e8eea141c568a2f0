"""Stage `evaluation`: evaluates the model of a training stage, in one process.

    python evaluation/evaluate_model.py --recipe recipes/demo.yaml --root .crawl2chat/data --of sft

`--of pretrain|sft|rl` names the stage. `results.json` holds the numbers, the continuations and the conversations.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from evaluation import benchmarks, demonstrations, identity, tasks
from evaluation.opening import STAGE, evaluation
from evaluation.results import other_rank, parse, publish
from evaluation.scorer import Scorer
from inference.network import load_on_device, seed_all
from inference.sampler import Sample, Sampler, Sampling, seeds
from inference.tools import load_tools
from pipeline import command, errors
from pipeline.artifact import Published
from pipeline.command import Job
from pipeline.progress import Progress
from pipeline.recipe import Evaluation
from pipeline.stages import EVALUATIONS
from tokenizer.bpe import Tokenizer
from tokenizer.chat import Message, prompt, readable


class Evaluator:
    """Evaluates one model: each method is one part of `results.json`."""

    def __init__(self, sampler: Sampler, recipe: Evaluation, seed: int) -> None:
        self.sampler, self.recipe, self.seed = sampler, recipe, seed

    def sample(self, prompts: list[list[int]], temperature: float, name: str) -> list[Sample]:
        """One sample per prompt; `name` is the purpose that the seeds are derived from."""
        row_seeds = seeds(f"{self.seed}:evaluation:{name}", len(prompts))
        return self.sampler.sample_all(prompts, Sampling(self.recipe.max_new_tokens, temperature), row_seeds)

    def replies(self, users: list[str]) -> list[str]:
        """Greedy answers to single messages, tool calls visible."""
        prompts = [prompt([Message(role="user", content=text)], self.sampler.tokenizer) for text in users]
        return [self.sampler.text(row) for row in self.sample(prompts, 0.0, "replies")]

    def continuations(self) -> list[dict[str, str]]:
        """Greedy continuations of the recipe's prompts, as plain text without turns."""
        prompts = [self.sampler.tokenizer.encode_prompt(text) for text in self.recipe.prompts]
        rows = self.sample(prompts, 0.0, "continuations")
        return [
            {"prompt": text, "text": self.sampler.text(row)}
            for text, row in zip(self.recipe.prompts, rows, strict=True)
        ]

    def demonstrations(self) -> list[dict[str, str]]:
        """Greedy continuations of the few-shot prompts for base models, each up to its stop text."""
        rows = [row for source in self.recipe.demonstrations for row in demonstrations.read(source)]
        answered = []
        for row in rows:
            # One at a time, as each has a stop text of its own. Greedy sampling makes no use of the seed.
            sampling = Sampling(self.recipe.max_new_tokens, stop=(row["stop"],))
            [sample] = self.sampler.sample([self.sampler.tokenizer.encode_prompt(row["prompt"])], sampling, [0])
            # The token that completes the stop text may begin before it and go on after it.
            answered.append(row | {"text": self.sampler.text(sample).split(row["stop"])[0]})
        return answered

    def benchmarks(self) -> dict[str, float]:
        """The numbers of the recipe's benchmarks, each prefixed with the benchmark's name."""
        scorer = Scorer(self.sampler.model, self.sampler.tokenizer)
        return {
            f"{benchmark.name}_{name}": value
            for benchmark in self.recipe.benchmarks
            for name, value in benchmarks.evaluate(scorer, benchmark).items()
        }

    def chats(self) -> list[dict[str, str]]:
        """Greedy answers to the recipe's messages, as sampled and as people read them."""
        users = list(self.recipe.chats)
        return [
            {"user": user, "assistant": text, "readable": readable(text)}
            for user, text in zip(users, self.replies(users), strict=True)
        ]

    def task(self, name: str, count: int) -> dict[str, Any]:
        """Accuracy at temperature 1 (mean over samples) and greedy, on `count` questions of the held-out split.

        An answer that did not end is wrong. Of the answers at temperature 1 also: the share that called a tool, the
        accuracy of those and of the others (None where there are none), and the mean length in tokens.
        """
        # 1. The same held-out questions for every model of a run: the seed depends on nothing but the recipe.
        task = tasks.load_task(name)
        questions = list(islice(task.questions("held_out", f"{self.seed}:evaluation:{name}"), count))
        prompts = [prompt(question.messages(), self.sampler.tokenizer) for question in questions]
        numbers: dict[str, Any] = {"questions": len(questions), "samples": self.recipe.samples}
        for how, temperature, samples in (("sampled", 1.0, self.recipe.samples), ("greedy", 0.0, 1)):
            # 2. All samples of a question in a row, and each scored by the task's verifier.
            rows = self.sample([ids for ids in prompts for _ in range(samples)], temperature, f"{name}:{how}")
            repeated = [question for question in questions for _ in range(samples)]
            scores = tasks.rewards(task, repeated, [self.sampler.answer(row) for row in rows])
            # 3. As in rl: a sample cut at the limit earns nothing, even where its last number happens to be right.
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
        """The share of answers with the name where the question asks for it, and where it does not; and all answers."""
        questions = identity.questions()
        answers = self.replies([question["user"] for question in questions])
        rows = [question | {"assistant": answer} for question, answer in zip(questions, answers, strict=True)]
        claimed = {
            claims: [identity.NAME in row["assistant"] for row in rows if row["claims"] == claims]
            for claims in (True, False)
        }
        return {"identity_said": _mean(claimed[True]), "identity_wrongly_said": _mean(claimed[False])}, rows


def _mean(values: list[Any]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None


def evaluate(
    folder: Path, recipe: Evaluation, tools: Sequence[str], seed: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Evaluate the model in a folder; returns the content of `results.json`, whose `numbers` are the manifest's."""
    network = load_on_device(folder)
    evaluator = Evaluator(Sampler(network, Tokenizer.load(folder), load_tools(tools)), recipe, seed)
    results: dict[str, Any] = {"numbers": {}}
    parts = len(recipe.tasks) + 4  # identity, continuations, chats, benchmarks with demonstrations

    def report(done: int) -> None:
        if progress:
            floats = {name: value for name, value in results["numbers"].items() if isinstance(value, float)}
            progress(done, parts, **floats)

    # Part by part, each followed by a line of progress. Tasks, identity and benchmarks give numbers, the other parts
    # texts for people to read.
    for done, (name, count) in enumerate(recipe.tasks.items(), 1):
        results["numbers"] |= evaluator.task(name, count)
        report(done)
    numbers, results["identity"] = evaluator.identity()
    results["numbers"] |= numbers
    report(parts - 3)
    results["continuations"] = evaluator.continuations()
    report(parts - 2)
    results["chats"] = evaluator.chats()
    report(parts - 1)
    results["numbers"] |= evaluator.benchmarks()
    results["demonstrations"] = evaluator.demonstrations()
    report(parts)
    return results


def run(job: Job, of: str) -> None:
    """Open the stage, evaluate the model that the step `of` made, publish."""
    # Sampling has its own seeds; this one covers what torch and numpy might draw besides.
    seed_all(job.recipe.seed)
    building = evaluation(job, of)
    if isinstance(building, Published):
        return
    folder = command.source(job, of).on_disk()
    progress = Progress(building.storage, building.progress_folder, STAGE.name, "part")
    results = evaluate(folder, job.recipe.evaluation, job.recipe.assistant.tools, job.recipe.seed, progress)
    publish(building, results)
    print(json.dumps(results["numbers"]), flush=True)


def main() -> None:
    """Entry point."""
    job, of = parse(__doc__)
    if other_rank():
        return
    with command.recording(job, EVALUATIONS[of].name):
        run(job, of)


if __name__ == "__main__":
    errors.run(main)
