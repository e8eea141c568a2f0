"""A classifier of document quality that the user trains: fastText on lower-cased words and bigrams, as DCLM's.

Li et al. 2024 (DataComp-LM), section 4.4: fastText with bigrams, texts of the wanted kind against texts of the crawl.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import fasttext

from jobs.page.words import words
from pipeline.errors import InputError

GOOD, OTHER = "__label__good", "__label__other"
# fastText's defaults, but for bigrams; and one thread with a seed, since several threads give another model each time.
SETTINGS = {"lr": 0.1, "epoch": 5, "wordNgrams": 2, "dim": 100, "minCount": 1, "thread": 1, "seed": 1, "verbose": 0}
_CHARS = 50_000  # read of a text: more does not change its score


def line(text: str) -> str:
    """A text as fastText reads it: words in lower case, on one line."""
    return " ".join(words(text[:_CHARS].lower()))


def train(labelled: Sequence[tuple[str, bool]], scratch: Path) -> Any:
    """A model trained on (text, whether it is good); the same texts in the same order give the same model."""
    file = scratch / "labelled.txt"
    file.write_text("".join(f"{GOOD if good else OTHER} {line(text)}\n" for text, good in labelled), encoding="utf-8")
    return fasttext.train_supervised(str(file), **SETTINGS)


@cache
def load(path: str) -> Any:
    """The model in a file. Raises `InputError` where it holds none, or one with other labels."""
    fasttext.FastText.eprint = lambda *_: None  # else it prints a warning of its own API at each load
    try:
        model = fasttext.load_model(path)
    except ValueError as error:
        raise InputError(f"{path} is no fastText model: {error}", "make one: python jobs/train_quality.py") from error
    if set(model.labels) != {GOOD, OTHER}:
        raise InputError(f"{path} has the labels {model.labels}", f"a quality model has {GOOD} and {OTHER}")
    return model


def score(text: str, model: Any) -> float:
    """Probability that a text is good."""
    labels, probabilities = model.predict([line(text)], k=2)
    by_label = dict(zip(labels[0], probabilities[0], strict=True))
    return min(1.0, float(by_label.get(GOOD, 0.0)))  # fastText's sums can exceed 1 a little
