"""Questions with known answers, from local JSON-lines files in the formats of HellaSwag, ARC, MMLU and LAMBADA.

A model answers by the log-likelihood it gives each choice after the context. Prompts and both accuracies are those of
lm-evaluation-harness 0.4.13, so that numbers can be compared (`docs/evaluate.md`; a test holds the two together where
that is installed). `text` files give bits per byte.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.ngrams import bits_per_byte
from evaluation.scorer import Scorer
from pipeline import lines
from pipeline.errors import InputError
from pipeline.recipe import Benchmark

_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Item:
    """A `context`, the `choices` that may follow it after a blank, and the index of the right one.

    `description` stands once before the examples of a few-shot prompt.
    """

    context: str
    choices: tuple[str, ...]
    gold: int
    description: str = ""

    def solved(self) -> str:
        """The item as an example."""
        return f"{self.context} {self.choices[self.gold]}\n\n"


def hellaswag(row: dict[str, Any]) -> Item:
    """`activity_label`, `ctx_a`, `ctx_b`, `endings`, `label` (Zellers et al. 2019)."""
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return Item(_without_marks(context), tuple(map(_without_marks, row["endings"])), int(row["label"]))


def _without_marks(text: str) -> str:
    """Without what the WikiHow part of HellaSwag left in brackets."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def arc(row: dict[str, Any]) -> Item:
    """`question` (text, or `stem` and `choices` in it), `choices`, `answerKey` (Clark et al. 2018, either layout)."""
    asked = row["question"]
    if isinstance(asked, dict):
        texts, labels = zip(*((choice["text"], choice["label"]) for choice in asked["choices"]), strict=True)
        asked = asked["stem"]
    else:
        texts, labels = row["choices"]["text"], row["choices"]["label"]
    return Item(f"Question: {asked}\nAnswer:", tuple(texts), list(labels).index(row["answerKey"]))


def mmlu(row: dict[str, Any]) -> Item:
    """`question`, `subject`, `choices`, `answer` as an index (Hendrycks et al. 2021)."""
    letters = _LETTERS[: len(row["choices"])]
    offered = [f"{letter}. {choice}" for letter, choice in zip(letters, row["choices"], strict=True)]
    about = row["subject"].replace("_", " ")
    return Item(
        "\n".join([row["question"].strip(), *offered, "Answer:"]),
        tuple(letters),
        int(row["answer"]),
        f"The following are multiple choice questions (with answers) about {about}.\n\n",
    )


def lambada(row: dict[str, Any]) -> Item:
    """`text`, whose last word is to be told (Paperno et al. 2016)."""
    context, word = row["text"].rsplit(" ", 1)
    return Item(context, (word,), 0)


def text(row: dict[str, Any]) -> Item:
    """`text`, all of it."""
    return Item("", (row["text"],), 0)


FORMATS: dict[str, Callable[[dict[str, Any]], Item]] = {
    "hellaswag": hellaswag,
    "arc": arc,
    "mmlu": mmlu,
    "lambada": lambada,
    "text": text,
}


def read(file: str, kind: str, most: int | None) -> list[Item]:
    """The first `most` items of a file. Raises `InputError` with file and line for one that is none."""
    items: list[Item] = []
    for number, line in itertools.islice(lines.read(file, "check evaluation.benchmarks"), most):
        try:
            item = FORMATS[kind](json.loads(line))
            if not 0 <= item.gold < len(item.choices) or not all(item.choices):
                raise ValueError(f"answer {item.gold} of {item.choices}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file}:{number}: no {kind} item: {error!r}", "check the benchmark's kind") from error
        items.append(item)
    if not items:
        raise InputError(f"{file} holds no item", "check evaluation.benchmarks")
    return items


def measure(scorer: Scorer, task: Benchmark) -> dict[str, float | int]:
    """The numbers of a task: `questions`, `accuracy` with its standard error, and by kind:

    Multiple choice: `accuracy` by the log-likelihood of the choices, `accuracy_normalised` by it over their characters.
    LAMBADA: the share of last words whose tokens are all the likeliest, and `perplexity` a word. Text: `bits_per_byte`.
    """
    items = read(task.file, task.kind, task.most)
    if task.kind == "text":
        return _text(scorer, items)
    examples = read(task.examples, task.kind, task.shots) if task.examples and task.shots else []
    if len(examples) < task.shots:
        raise InputError(f"{task.examples} holds {len(examples)} items, {task.shots} are asked for", "lower the shots")
    before = "".join(item.solved() for item in examples)
    starts = [f"{item.description}{before}{item.context}" for item in items]
    told = scorer.score(
        [scorer.pair(start, f" {choice}") for start, item in zip(starts, items, strict=True) for choice in item.choices]
    )
    return {"questions": len(items)} | (_completion(told) if task.kind == "lambada" else _choice(told, items))


def _choice(told: Sequence[tuple[float, bool]], items: Sequence[Item]) -> dict[str, float]:
    """Of multiple choice, from what the choices got, item after item."""
    values = iter(value for value, _ in told)
    right, normalised = [], []
    for item in items:
        own = np.array([next(values) for _ in item.choices])
        right.append(int(own.argmax()) == item.gold)
        normalised.append(int((own / [len(choice) for choice in item.choices]).argmax()) == item.gold)
    return _accuracy("accuracy", right) | _accuracy("accuracy_normalised", normalised)


def _completion(told: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Of last words."""
    cost = -float(np.mean([value for value, _ in told]))
    return _accuracy("accuracy", [likeliest for _, likeliest in told]) | {"perplexity": round(math.exp(cost), 4)}


def _accuracy(name: str, right: Sequence[bool]) -> dict[str, float]:
    """A share and its standard error."""
    error = float(np.std(right, ddof=1)) / math.sqrt(len(right)) if len(right) > 1 else 0.0
    return {name: round(float(np.mean(right)), 6), f"{name}_error": round(error, 6)}


def _text(scorer: Scorer, items: Sequence[Item]) -> dict[str, float | int]:
    ids = [scorer.tokenizer.encode(item.choices[0]) for item in items]
    told = scorer.score([window for one in ids for window in scorer.windows(one)])
    tokens, size = sum(map(len, ids)), sum(len(item.choices[0].encode()) for item in items)
    cost = -sum(value for value, _ in told) / max(1, tokens)
    return {"questions": len(items), "bits_per_byte": round(bits_per_byte(cost, tokens, size), 6)}
