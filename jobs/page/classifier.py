"""A document-quality classifier of the user's: fastText on lower-cased words and pairs of them, as DCLM's.

Li et al. 2024 (DataComp-LM), section 4.4: fastText with bigrams, on texts one wants more of against texts of the crawl.
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
SETTINGS = {"lr": 0.1, "epoch": 5, "wordNgrams": 2, "dim": 100, "minCount": 1, "thread": 1, "seed": 1, "verbose": 0}
_CHARS = 50_000  # of a text: more tells nothing more


def line(text: str) -> str:
    """A text as fastText reads it: words in small letters, one line."""
    return " ".join(words(text[:_CHARS].lower()))


def train(labelled: Sequence[tuple[str, bool]], scratch: Path) -> Any:
    """A model from (text, whether it is good); the same texts in the same order give the same model."""
    file = scratch / "labelled.txt"
    file.write_text("".join(f"{GOOD if good else OTHER} {line(text)}\n" for text, good in labelled), encoding="utf-8")
    return fasttext.train_supervised(str(file), **SETTINGS)


@cache
def load(path: str) -> Any:
    """The model in a file. Raises `InputError` for a file that holds none with the two labels."""
    fasttext.FastText.eprint = lambda *_: None
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
    found = dict(zip(labels[0], probabilities[0], strict=True))
    return min(1.0, float(found.get(GOOD, 0.0)))
