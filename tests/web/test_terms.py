"""What numbers are explained, and that their names are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.reasons import REASONS
from web.terms import TERMS, meaning

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("bits per byte", "bits_per_byte"),
        ("arithmetic: tool rate", "tool_rate"),
        ("hellaswag accuracy normalised", "accuracy_normalised"),
        ("arc_easy_accuracy", "accuracy"),
    ],
)
def test_a_number_is_explained_by_its_name(label: str, name: str) -> None:
    assert meaning(label) == TERMS[name]


def test_a_reason_is_explained_too_and_an_unknown_name_is_not() -> None:
    assert meaning("left out: too long") == REASONS["too_long"]
    assert meaning("something new") == "" == meaning("")


def test_no_name_is_of_the_past() -> None:
    rooms = ("pipeline", "jobs", "training", "evaluation", "tokenizer")
    code = "".join(file.read_text() for room in rooms for file in sorted((ROOT / room).rglob("*.py")))
    code += (ROOT / "web/report/learning.py").read_text()
    derived = {f"{split}_bytes" for split in ("train", "validation")} | {"validation_tokens", "train_bytes_per_token"}
    derived |= {f"{how}_accuracy" for how in ("sampled", "greedy")} | {"accuracy_error", "accuracy_normalised_error"}
    assert [name for name in TERMS if name not in derived and f'"{name}"' not in code and f"{name}=" not in code] == []
