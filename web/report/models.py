"""The same questions to the base, the fine-tuned and the reinforced model, side by side."""

from __future__ import annotations

from typing import Any

from pipeline.artifact import RunArtifacts
from pipeline.stages import EVALUATIONS, MODELS
from web.words import rate


def models(run: RunArtifacts) -> dict[str, Any]:
    """The same prompts to the base, the fine-tuned and the reinforced model, side by side."""
    names = {step.name: step.model for step in MODELS}
    results = {name: run.data(EVALUATIONS[name].name, "results.json") for name in names if name in EVALUATIONS}
    results = {name: result for name, result in results.items() if result}

    def table(key: str) -> list[dict[str, Any]]:
        texts = {name: _texts(result.get(key)) for name, result in results.items()}
        prompts = dict.fromkeys(prompt for answers in texts.values() for prompt in answers)
        return [
            {"prompt": prompt, "answers": [(names[name], texts[name].get(prompt)) for name in results]}
            for prompt in prompts
        ]

    rates = [
        (
            name.replace("_", " ").replace(".", ": "),
            [rate(name, run.number(EVALUATIONS[model].name, name)) for model in results],
        )
        for name in dict.fromkeys(
            key
            for model in results
            for key, value in run.artifacts[EVALUATIONS[model].name].content.numbers.items()
            if isinstance(value, (int, float))
        )
    ]
    return {
        "names": [names[name] for name in results],
        "rates": rates,
        "continuations": table("continuations"),
        "chats": table("chats"),
        "identity": table("identity"),
    }


def _texts(rows: Any) -> dict[str, str]:
    """Prompt to answer, of continuations (prompt, text) or conversations (user, assistant)."""
    pairs = [(row.get("prompt", row.get("user")), row.get("text", row.get("assistant"))) for row in rows or []]
    return {str(prompt): str(answer) for prompt, answer in pairs if answer is not None}
