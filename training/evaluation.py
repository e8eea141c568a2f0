"""Stage `evaluation`: what a model can do, measured between the stages, in one process.

    python training/evaluation.py --recipe recipes/demo.yaml --root .crawl2chat/data --of sft

`--of pretrain|sft|rl` says whose model. `results.json` holds the numbers, the continuations and the conversations.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from pipeline import artifact, errors
from pipeline.artifact import Published, Stage
from pipeline.errors import RecipeError
from pipeline.recipe import Evaluation
from tokenizer.bpe import Tokenizer
from tokenizer.chat import Message, prompt
from training import conversations, launch, model
from training.loop import source_model
from training.sampler import Sampler
from training.tasks import Arithmetic
from training.tools import calculator

STAGE = Stage("evaluation", 1, libraries=("torch", "transformers"))
MODELS = ("pretrain", "sft", "rl")


def arithmetic(sampler: Sampler, recipe: Evaluation, seed: int) -> dict[str, float]:
    """Accuracy at temperature 1 (mean over samples) and greedy, tool rate and length, on unseen operand pairs."""
    task = Arithmetic()
    rng = random.Random(f"{seed}:evaluation")
    questions = [task.question(rng, "held_out") for _ in range(recipe.arithmetic)]
    asked = [prompt([Message(role="user", content=q.text)], sampler.tokenizer) for q in questions]
    found: dict[str, float] = {}
    for name, temperature, each in (("sampled", 1.0, recipe.samples), ("greedy", 0.0, 1)):
        rows = sampler.sample([ids for ids in asked for _ in range(each)], recipe.max_new_tokens, temperature, seed)
        answers = [q.answer for q in questions for _ in range(each)]
        right = task.reward([], [sampler.answer(row) for row in rows], answer=answers)
        ended = [score if row.finished else 0.0 for score, row in zip(right, rows, strict=True)]
        found[f"{name}_accuracy"] = round(sum(ended) / len(rows), 6)
        if name == "sampled":
            found["tool_rate"] = round(sum(row.tools > 0 for row in rows) / len(rows), 6)
            found["answer_length"] = round(sum(len(row.ids) for row in rows) / len(rows), 4)
    return found


def replies(sampler: Sampler, users: list[str], most: int, seed: int) -> list[str]:
    """Greedy answers to single messages."""
    asked = [prompt([Message(role="user", content=text)], sampler.tokenizer) for text in users]
    return [sampler.text(row) for row in sampler.sample(asked, most, 0.0, seed)]


def identity(sampler: Sampler, most: int, seed: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """How often the name is said where it is asked for, and where it is not, in wordings never trained on."""
    questions = conversations.identity_questions()
    answers = replies(sampler, [q["user"] for q in questions], most, seed)
    rows = [q | {"assistant": a} for q, a in zip(questions, answers, strict=True)]
    said = {
        claims: [conversations.NAME in row["assistant"] for row in rows if row["claims"] == claims]
        for claims in (True, False)
    }
    numbers = {
        "identity_said": round(sum(said[True]) / len(said[True]), 6),
        "identity_wrongly_said": round(sum(said[False]) / len(said[False]), 6),
    }
    return numbers, rows


def measure(folder: Path, recipe: Evaluation, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Numbers for the manifest, and all results, of the model in a folder."""
    tokenizer = Tokenizer.load(folder)
    sampler = Sampler(model.load(folder), tokenizer, calculator)
    numbers = arithmetic(sampler, recipe, seed)
    said, rows = identity(sampler, recipe.max_new_tokens, seed)
    numbers |= said
    starts = [tokenizer.encode(text) or [tokenizer.end_of_text] for text in recipe.prompts]
    continued = sampler.sample(starts, recipe.max_new_tokens, 0.0, seed)
    chats = replies(sampler, list(recipe.chats), recipe.max_new_tokens, seed)
    results = {
        "numbers": numbers,
        "continuations": [
            {"prompt": text, "text": sampler.text(row)} for text, row in zip(recipe.prompts, continued, strict=True)
        ],
        "chats": [{"user": text, "assistant": answer} for text, answer in zip(recipe.chats, chats, strict=True)],
        "identity": rows,
    }
    return numbers, results


def main() -> None:
    """Entry point."""
    arguments = sys.argv[1:]
    if "--of" not in arguments or arguments.index("--of") + 1 >= len(arguments):
        raise RecipeError("--of is missing", f"say whose model: --of {'|'.join(MODELS)}")
    at = arguments.index("--of")
    of = arguments[at + 1]
    if of not in MODELS:
        raise RecipeError(f"--of {of!r} is no stage that makes a model", f"choose one of {', '.join(MODELS)}")
    job = launch.parse("evaluation.py", arguments[:at] + arguments[at + 2 :])
    source = source_model(job, of)
    opened = artifact.open_stage(
        job.storage,
        job.run,
        STAGE,
        job.recipe.section("evaluation"),
        job.recipe.seed,
        [source.as_input()],
        name=f"evaluation-{of}",
        force=job.force,
    )
    if isinstance(opened, Published):
        return
    folder = Path(job.storage.local_path(source.folder))
    numbers, results = measure(folder, job.recipe.evaluation, job.recipe.seed)
    text = json.dumps(results, ensure_ascii=False, indent=1)
    job.storage.write(opened.file("results.json"), text.encode())
    opened.publish([artifact.describe(job.storage, opened.pointer.folder, "results.json", 1)], numbers=dict(numbers))
    print(json.dumps(numbers), flush=True)


if __name__ == "__main__":
    errors.run(main)
