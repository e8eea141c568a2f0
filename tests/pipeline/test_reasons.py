"""The list of reasons is complete, and holds none that no stage gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.page import quality
from jobs.page.take_down import TAKEN_DOWN
from pipeline.reasons import REASONS
from pipeline.recipe import Recipe, load

ROOT = Path(__file__).parents[2]
# How the stages give a reason: a value of the key `reason`, a call of `dropped`, a return of the block list, a count,
# or a literal column.
GIVEN = re.compile(
    r'"reason": "(\w+)"|dropped\("(\w+)"|return "(blocked_\w+)"|dropped=\{"(\w+)"|dropped \| \{"(\w+)"'
    r'|dropped = \{"(\w+)": 0, "(\w+)": 0|lit\("(\w+_copy)"\)'
)


def given() -> Iterator[str]:
    for room in ("jobs", "training"):
        for file in sorted((ROOT / room).rglob("*.py")):
            for match in GIVEN.finditer(file.read_text()):
                yield from filter(None, match.groups())


def rules() -> set[str]:
    """The reasons of all rules that a recipe can switch on."""
    recipe: Recipe = load(
        ROOT / "recipes/demo.yaml",
        {
            "filter.licenses": ["cc0-*"],
            "filter.min_quality": 0.5,
            "extract.quality_model": "model.bin",
            "filter.c4.drop_curly_brace": True,
        },
    )
    row: dict[str, Any] = dict.fromkeys(quality.COLUMNS, 0) | {"language": "en", "language_score": 1, "quality": 1}
    return {check.reason for check in quality.checks(row, recipe.filter)}


def test_every_reason_of_a_stage_is_explained_and_no_other() -> None:
    stages = set(given()) | {TAKEN_DOWN} | rules()
    assert {"not_200", "blocked_word", "page_crash", "near_copy", "too_long", "held_out", "beyond_budget"} <= stages
    assert stages == REASONS.keys()


def test_an_explanation_is_one_sentence_without_a_number_of_a_recipe() -> None:
    for reason, text in REASONS.items():
        assert text[0].isupper() or text.startswith("fastText"), reason
        assert text.endswith(".") and text.count(". ") == 0 and len(text) < 120, reason
