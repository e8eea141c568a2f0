"""Questions with known answers, from local JSON-lines files in the formats of HellaSwag, ARC, MMLU and LAMBADA.

A model answers by the log-likelihood it gives each choice after the context. Prompts, the seam between context and
choice, the cut at the window and both accuracies are those of lm-evaluation-harness 0.4.13, so that numbers can be
compared (`docs/evaluate.md`; a test holds the two together where that is installed). `text` files give bits a byte.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import lines
from pipeline.errors import InputError
from pipeline.recipe import Evaluation, Task
from tokenizer.bpe import Tokenizer
from training.conversations import BUILTIN, DATA
from training.engine import LOGIT_BYTES, log_probabilities
from training.ngrams import bits_per_byte

_TOKENS = 16_384  # of a batch: what its activations take stays within some hundred MB for small models
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
    for number, line in itertools.islice(lines.read(file, "check evaluation.tasks"), most):
        try:
            item = FORMATS[kind](json.loads(line))
            if not 0 <= item.gold < len(item.choices) or not all(item.choices):
                raise ValueError(f"answer {item.gold} of {item.choices}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file}:{number}: no {kind} item: {error!r}", "check the task's kind") from error
        items.append(item)
    if not items:
        raise InputError(f"{file} holds no item", "check evaluation.tasks")
    return items


def demonstrations(source: str) -> list[dict[str, str]]:
    """The prompts of a file or of a set that comes with the project: `name`, `prompt`, `stop`."""
    rows = []
    for number, line in lines.read(str(_prompts(source)), "check evaluation.demonstrations"):
        try:
            row = json.loads(line)
            rows.append({key: str(row[key]) for key in ("name", "prompt", "stop")})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{source}:{number}: {error!r}", "a line is {'name': …, 'prompt': …, 'stop': …}"
            ) from error
    return rows


def assets(recipe: Evaluation) -> dict[str, str]:
    """Sha256 by name of the files that a recipe's tasks and demonstrations read, for the fingerprint."""
    named = {file: Path(file) for task in recipe.tasks for file in (task.file, task.examples) if file}
    named |= {source: _prompts(source) for source in recipe.demonstrations}
    try:
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in named.items()}
    except OSError as error:
        raise InputError(
            f"{error.filename} cannot be read: {error.strerror}", "check the evaluation section"
        ) from error


def _prompts(source: str) -> Path:
    return DATA / f"{source.removeprefix(BUILTIN)}.jsonl" if source.startswith(BUILTIN) else Path(source)


class Scorer:
    """Log-likelihoods under one model."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.window = int(model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]

    def pair(self, context: str, continuation: str) -> tuple[list[int], int]:
        """Ids of both together, and how many of them are the continuation's; blanks at the seam belong to it."""
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        if not bare:
            own = self.tokenizer.encode(continuation)
            return [self.tokenizer.end_of_text, *own], len(own)
        whole = self.tokenizer.encode(bare + continuation)
        return whole, len(whole) - len(self.tokenizer.encode(bare))

    def windows(self, ids: list[int]) -> Iterator[tuple[list[int], int]]:
        """A text of any length in windows that tell each token once, the last with all the context it can have."""
        whole = [self.tokenizer.end_of_text, *ids]
        for start in range(1, len(whole), self.window):
            stop = min(start + self.window, len(whole))
            yield whole[max(0, stop - self.window - 1) : stop], stop - start

    @torch.no_grad()
    def score(self, rows: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        """Of the last so many tokens of each row: their log-likelihood in nats, and whether all are the likeliest.

        A row longer than the window loses its beginning; `InputError` where those tokens alone are longer.
        """
        if (longest := max((count for _, count in rows), default=0)) > self.window:
            raise InputError(f"a choice of {longest} tokens exceeds the window of {self.window}", "leave it out")
        device = next(self.model.parameters()).device
        vocabulary = int(self.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        was_training = self.model.training
        self.model.eval()
        waiting = sorted(range(len(rows)), key=lambda at: (len(rows[at][0]), at), reverse=True)
        while waiting:
            length = min(len(rows[waiting[0]][0]) - 1, self.window)
            size = max(1, _TOKENS // max(1, length))
            kept = max(rows[at][1] for at in waiting[:size])
            size = max(1, min(size, LOGIT_BYTES[device.type] // max(1, 4 * kept * vocabulary)))
            batch, waiting = waiting[:size], waiting[size:]
            self._score([rows[at] for at in batch], batch, found, device)
        self.model.train(was_training)
        return found

    def _score(
        self,
        rows: Sequence[tuple[list[int], int]],
        places: list[int],
        found: list[tuple[float, bool]],
        device: torch.device,
    ) -> None:
        cut = [ids[-self.window - 1 :] for ids, _ in rows]
        length, kept = max(len(ids) for ids in cut) - 1, max(count for _, count in rows)
        if length < 1 or kept < 1:
            return  # nothing is asked
        ids = torch.zeros((len(rows), length + 1), dtype=torch.long)
        seen = torch.zeros((len(rows), length), dtype=torch.long)
        for row, one in enumerate(cut):  # padded on the left, so that all continuations end together
            ids[row, length + 1 - len(one) :] = torch.tensor(one)
            seen[row, length + 1 - len(one) :] = 1
        ids, seen = ids.to(device), seen.to(device)
        logits: Tensor = self.model(
            input_ids=ids[:, :-1],
            attention_mask=seen,
            position_ids=(seen.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=kept,
        ).logits
        targets = ids[:, -kept:]
        told = log_probabilities(logits, targets).double()
        likeliest = logits.argmax(-1) == targets
        for row, (place, (_, count)) in enumerate(zip(places, rows, strict=True)):
            if count:
                found[place] = float(told[row, -count:].sum()), bool(likeliest[row, -count:].all())


def measure(scorer: Scorer, task: Task) -> dict[str, float | int]:
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
