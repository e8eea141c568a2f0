"""The same questions to the base, the fine-tuned and the reinforced model, side by side."""

from __future__ import annotations

from typing import Any

from evaluation import identity
from evaluation.tasks import is_right
from pipeline import available
from pipeline.artifact import RunArtifacts
from pipeline.numbers import asked_tasks
from pipeline.stages import EVALUATIONS, MODELS
from tokenizer.chat import readable
from web.words import rate

SIZES = ("questions", "samples")  # numbers that say how much was asked, not how well it was answered


def models(run: RunArtifacts) -> dict[str, Any]:
    """The same prompts to the base, the fine-tuned and the reinforced model, side by side."""
    names = {step.name: step.model for step in MODELS}
    results = {name: run.data(EVALUATIONS[name].name, "results.json") for name in names if name in EVALUATIONS}
    results = {name: result for name, result in results.items() if result}

    tasks = list(dict.fromkeys(task for model in results for task in _tasks(run, model)))

    def table(key: str) -> list[dict[str, Any]]:
        """A row per prompt; each answer: model, text (None where it was not asked), right (None where unknown)."""
        rows = {name: {prompt_of(row): row for row in result.get(key) or []} for name, result in results.items()}
        prompts = dict.fromkeys(prompt for of_model in rows.values() for prompt in of_model)
        return [
            {
                "prompt": prompt,
                "answers": [(names[name], *_answer(rows[name].get(prompt), tasks)) for name in results],
            }
            for prompt in prompts
        ]

    measured = {
        name: [run.number(EVALUATIONS[model].name, name) for model in results]
        for name in dict.fromkeys(
            key
            for model in results
            for key, value in run.artifacts[EVALUATIONS[model].name].content.numbers.items()
            if value is None or isinstance(value, (int, float))
        )
    }
    measured = {name: values for name, values in measured.items() if any(value is not None for value in values)}
    return {
        "names": [names[name] for name in results],
        "rates": [
            (name.replace("_", " ").replace(".", ": "), [rate(name, value) for value in values])
            for name, values in measured.items()
            if not name.endswith(SIZES)
        ],
        "sizes": _sizes({name: max(filter(None, values), default=0) for name, values in measured.items()}),
        "continuations": table("continuations"),
        "chats": table("chats"),
        "identity": table("identity"),
    }


def prompt_of(row: dict[str, Any]) -> str:
    """The prompt of a continuation (prompt, text) or the message of a conversation (user, assistant)."""
    return str(row.get("prompt", row.get("user")))


def _sizes(measured: dict[str, Any]) -> list[str]:
    """What was asked: `200 arithmetic questions, 4 samples of each`."""
    sizes = []
    for name, count in measured.items():
        asked, _, size = name.replace(".", "_").rpartition("_")
        if size == "questions":
            samples = measured.get(f"{name.removesuffix('questions')}samples")
            sizes.append(
                f"{count:,} {asked.replace('_', ' ')} questions" + (f", {samples} samples of each" if samples else "")
            )
    return sizes


def _tasks(run: RunArtifacts, model: str) -> list[str]:
    """The tasks of a model's evaluation that this version still has."""
    return [task for task in asked_tasks(run.number(EVALUATIONS[model].name)) if task in available.tasks()]


def _answer(row: dict[str, Any] | None, tasks: list[str]) -> tuple[str | None, bool | None]:
    """An answer as people read it, and whether it is right: by a task's verifier, or by the name it should say.

    Where the name is out of place, an answer without it may still be nonsense: it is not called right.
    """
    if row is None or (text := row.get("text", row.get("assistant"))) is None:
        return None, None
    text = str(text)
    if "claims" in row:
        named = identity.NAME in text
        return readable(text).strip(), named if row["claims"] else (False if named else None)
    right = is_right(tasks, prompt_of(row), text) if "user" in row else None
    return str(row.get("readable") or readable(text)).strip(), right
