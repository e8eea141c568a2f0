"""The settings of a run: its recipe, as differences to the one that it is based on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.recipe import load
from pipeline.storage import Storage
from tests.web import test_report
from tests.web.small_run import HOSTILE, RUN, corpus
from web import report
from web.report import settings
from web.report.settings import ABSENT, base_of, compared

RECIPES = Path("recipes")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(tmp_path / "root")
    corpus(storage)
    return storage


def run_with(storage: Storage, overrides: dict[str, Any], recipe: str = "demo") -> str:
    final = load(RECIPES / f"{recipe}.yaml", overrides)
    storage.write(f"runs/{RUN}/recipe.yaml", final.to_yaml().encode())
    return test_report.words(report.render(report.opened(storage, RUN)))


def test_what_a_form_changed_is_shown_beside_what_the_file_says(storage: Storage) -> None:
    text = run_with(storage, {"pretrain.steps": 20, "filter.gopher.max_duplicate_ngram_chars": {"5": 0.3}})
    assert "What differs from recipes/demo.yaml: Key This run demo.yaml" in text
    assert "pretrain.steps 20 175" in text
    assert "filter.gopher.max_duplicate_ngram_chars.5 0.3 0.15" in text
    assert "filter.gopher.max_duplicate_ngram_chars.6 not set 0.14" in text
    assert "page_seconds: 10.0" in text, "the whole recipe"
    assert "extract.page_seconds" not in text, "10 and 10.0 are one value"


def test_an_unchanged_recipe_says_so(storage: Storage) -> None:
    assert "All values are those of recipes/demo.yaml." in run_with(storage, {})


def test_a_recipe_that_extends_another_is_compared_with_that_one(storage: Storage) -> None:
    text = run_with(storage, {}, "multilingual")
    assert "What differs from recipes/fineweb.yaml:" in text
    assert "filter.languages.de 0.65 not set" in text


def test_a_recipe_of_a_user_is_compared_with_the_nearest() -> None:
    own = load(RECIPES / "fineweb.yaml", {"name": "ours", "rl.steps": 7})
    name, base = base_of(own.model_dump(mode="json"), RECIPES)
    assert name == "fineweb.yaml"
    assert [key for key, *_ in compared(own.model_dump(mode="json"), base)] == ["rl.steps"]


def test_values_are_text_on_one_line_and_what_one_side_lacks_is_named() -> None:
    ours = {"name": "a", "x": {"list": [1, None, "b"], "gone": {}}, "same": 1}
    theirs = {"name": "b", "x": {"list": [], "new": True}, "same": 1.0}
    assert compared(ours, theirs) == [
        ("x.list", "[1, null, b]", "[]"),
        ("x.gone", "{}", ABSENT),
        ("x.new", ABSENT, "true"),
    ]


def test_without_recipes_or_a_recipe_nothing_is_compared(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    text = test_report.words(report.render(report.opened(storage, RUN)))
    assert "The run has no recipe.yaml: its stages were started by hand." in text
    monkeypatch.setattr(settings, "RECIPES", Path("nowhere"))
    text = run_with(storage, {})
    assert "differs from" not in text and "The whole recipe" in text


def test_a_hostile_value_is_text_and_another_recipe_another_report(storage: Storage) -> None:
    before = report.publish(storage, RUN).folder
    recipe = yaml.safe_load((RECIPES / "demo.yaml").read_text()) | {"name": "demo", "seed": HOSTILE}
    storage.write(f"runs/{RUN}/recipe.yaml", yaml.safe_dump(recipe).encode())
    html = report.render(report.opened(storage, RUN))
    assert "script" not in test_report.Page(html).tags and "\x07" not in html and "\u202e" not in html
    assert report.publish(storage, RUN).folder != before
