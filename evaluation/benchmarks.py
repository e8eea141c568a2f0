"""Benchmarks from local JSON-lines files in the formats of HellaSwag, ARC, MMLU and LAMBADA, scored by log-likelihood.

The answer of a model is the choice to which it assigns the highest log-likelihood after the context. Prompts and both
accuracies are those of lm-evaluation-harness 0.4.13, so that numbers can be compared (`docs/evaluate.md`; where it is
installed, a test compares them). Files of the kind `text` are scored in bits per byte.
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
from evaluation.scorer import Score, Scorer
from pipeline import lines
from pipeline.errors import InputError
from pipeline.recipe import Benchmark

_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Item:
    """One question: a `context`, the `choices` that may follow it after a blank, and the index `gold` of the right one.

    `description` precedes the whole prompt once, before the few-shot examples.
    """

    context: str
    choices: tuple[str, ...]
    gold: int
    description: str = ""

    def as_example(self) -> str:
        """The item with its right answer, as a few-shot example."""
        return f"{self.context} {self.choices[self.gold]}\n\n"


def hellaswag(row: dict[str, Any]) -> Item:
    """An item of HellaSwag: `activity_label`, `ctx_a`, `ctx_b`, `endings`, `label` (Zellers et al. 2019)."""
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return Item(_without_brackets(context), tuple(map(_without_brackets, row["endings"])), int(row["label"]))


def _without_brackets(text: str) -> str:
    """The text without the marks in brackets that HellaSwag's WikiHow part contains; as the harness cleans it."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def arc(row: dict[str, Any]) -> Item:
    """An item of ARC: `question`, `choices`, `answerKey` (Clark et al. 2018).

    In the original files `question` holds `stem` and `choices`, each with text and label; on the Hub it is a text, and
    `choices` is a pair of lists.
    """
    question = row["question"]
    if isinstance(question, dict):
        texts, labels = zip(*((choice["text"], choice["label"]) for choice in question["choices"]), strict=True)
        question = question["stem"]
    else:
        texts, labels = row["choices"]["text"], row["choices"]["label"]
    return Item(f"Question: {question}\nAnswer:", tuple(texts), list(labels).index(row["answerKey"]))


def mmlu(row: dict[str, Any]) -> Item:
    """An item of MMLU: `question`, `subject`, `choices`, `answer` as an index (Hendrycks et al. 2021).

    The choices are listed in the prompt, and what is scored are their letters.
    """
    letters = _LETTERS[: len(row["choices"])]
    listed = [f"{letter}. {choice}" for letter, choice in zip(letters, row["choices"], strict=True)]
    subject = row["subject"].replace("_", " ")
    return Item(
        "\n".join([row["question"].strip(), *listed, "Answer:"]),
        tuple(letters),
        int(row["answer"]),
        f"The following are multiple choice questions (with answers) about {subject}.\n\n",
    )


def lambada(row: dict[str, Any]) -> Item:
    """An item of LAMBADA: `text`, whose last word is to be predicted (Paperno et al. 2016)."""
    context, word = row["text"].rsplit(" ", 1)
    return Item(context, (word,), 0)


def text(row: dict[str, Any]) -> Item:
    """A plain text, scored as a whole: `text`."""
    return Item("", (row["text"],), 0)


FORMATS: dict[str, Callable[[dict[str, Any]], Item]] = {
    "hellaswag": hellaswag,
    "arc": arc,
    "mmlu": mmlu,
    "lambada": lambada,
    "text": text,
}


def read(file: str, kind: str, limit: int | None) -> list[Item]:
    """The first `limit` items of a file (None: all). Raises `InputError` with file and line for anything else."""
    items: list[Item] = []
    for number, line in itertools.islice(lines.read(file, "check evaluation.benchmarks"), limit):
        try:
            item = FORMATS[kind](json.loads(line))
            if not 0 <= item.gold < len(item.choices) or not all(item.choices):
                raise ValueError(f"answer {item.gold} of the choices {item.choices}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{file}:{number}: no {kind} item: {error!r}",
                "check the line, and that the benchmark's `kind` is the file's format",
            ) from error
        items.append(item)
    if not items:
        raise InputError(f"{file} holds no item", "check evaluation.benchmarks")
    return items


def evaluate(scorer: Scorer, benchmark: Benchmark) -> dict[str, float | int]:
    """The numbers of a benchmark: `questions`, and by kind:

    Multiple choice: `accuracy` by the log-likelihood of the choices, `accuracy_normalised` by it per character; each
    with its standard error. LAMBADA: `accuracy`, the share of last words whose tokens are all the likeliest ones, and
    `perplexity` per word. Text: `bits_per_byte`.
    """
    items = read(benchmark.file, benchmark.kind, benchmark.most)
    if benchmark.kind == "text":
        return _text(scorer, items)
    # The same examples for every question: the first ones of their file, where the harness may draw them at random.
    examples = (
        read(benchmark.examples, benchmark.kind, benchmark.shots) if benchmark.examples and benchmark.shots else []
    )
    if len(examples) < benchmark.shots:
        raise InputError(
            f"{benchmark.examples} holds {len(examples)} items, {benchmark.shots} are asked for", "lower the shots"
        )
    shots = "".join(item.as_example() for item in examples)
    contexts = [f"{item.description}{shots}{item.context}" for item in items]
    # One row per choice of every question, scored in one go so that batches hold rows of like length.
    scores = scorer.score(
        [
            scorer.pair(context, f" {choice}")
            for context, item in zip(contexts, items, strict=True)
            for choice in item.choices
        ]
    )
    numbers = _last_words(scores) if benchmark.kind == "lambada" else _multiple_choice(scores, items)
    return {"questions": len(items)} | numbers


def _multiple_choice(scores: Sequence[Score], items: Sequence[Item]) -> dict[str, float]:
    """Both accuracies, from the scores of all choices, item after item."""
    values = iter(value for value, _ in scores)
    right, normalised = [], []
    for item in items:
        own = np.array([next(values) for _ in item.choices])
        right.append(int(own.argmax()) == item.gold)
        # A sum over tokens favours short choices, so the second accuracy divides it by the number of characters.
        normalised.append(int((own / [len(choice) for choice in item.choices]).argmax()) == item.gold)
    return _accuracy("accuracy", right) | _accuracy("accuracy_normalised", normalised)


def _last_words(scores: Sequence[Score]) -> dict[str, float]:
    """Accuracy and perplexity of LAMBADA, from the scores of the last words."""
    cost = -float(np.mean([value for value, _ in scores]))  # nats per word
    return _accuracy("accuracy", [likeliest for _, likeliest in scores]) | {"perplexity": round(math.exp(cost), 4)}


def _accuracy(name: str, right: Sequence[bool]) -> dict[str, float]:
    """The share of right answers and its standard error."""
    error = float(np.std(right, ddof=1)) / math.sqrt(len(right)) if len(right) > 1 else 0.0
    return {name: round(float(np.mean(right)), 6), f"{name}_error": round(error, 6)}


def _text(scorer: Scorer, items: Sequence[Item]) -> dict[str, float | int]:
    """Bits per byte of the texts together: comparable between tokenizers, where a loss per token is not."""
    ids = [scorer.tokenizer.encode(item.choices[0]) for item in items]
    scores = scorer.score([window for row in ids for window in scorer.windows(row)])
    tokens, size = sum(map(len, ids)), sum(len(item.choices[0].encode()) for item in items)
    cost = -sum(value for value, _ in scores) / max(1, tokens)  # nats per token
    return {"questions": len(items), "bits_per_byte": round(bits_per_byte(cost, tokens, size), 6)}
