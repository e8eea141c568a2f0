"""Recipes and figures that the documentation shows agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pipeline.recipe import Recipe, load
from tests.docs.commands import ROOT, files, name
from tokenizer.chat import END_OF_TEXT, SPECIAL_TOKENS

GPT2_IDS = 50_257  # <|endoftext|> among them
FRAGMENTS = [
    pytest.param(text, id=f"{name(file)} {number}")
    for file in files(".md")
    for number, text in enumerate(re.findall(r"^```yaml\n(.*?)^```", file.read_text(), re.M | re.S), 1)
]


def merged(recipe: dict[str, object], fragment: dict[str, object]) -> dict[str, object]:
    """A recipe with the keys of a fragment of one."""
    for key, value in fragment.items():
        inner = recipe.get(key)
        recipe[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return recipe


@pytest.mark.parametrize("text", FRAGMENTS)
def test_a_recipe_that_is_shown_can_be_loaded(text: str, tmp_path: Path) -> None:
    """A fragment whose keys are all a recipe's, put into the demo's."""
    fragment = yaml.safe_load(text)
    if not fragment.keys() <= Recipe.model_fields.keys():
        pytest.skip("no part of a recipe")
    whole = merged(load(ROOT / "recipes/demo.yaml").model_dump(mode="json"), fragment)
    (tmp_path / "shown.yaml").write_text(yaml.safe_dump(whole))
    load(tmp_path / "shown.yaml")


def test_the_vocabulary_of_gpt2_is_what_the_page_says() -> None:
    text = " ".join((ROOT / "docs/reproduce-gpt2.md").read_text().split())
    shown = re.search(
        r"with our (\d+) further special tokens.*? has ([\d,]+) ids, which adds ([\d,]+) parameters", text
    )
    assert shown is not None
    further = len({*SPECIAL_TOKENS} - {END_OF_TEXT})
    width = load(ROOT / "recipes/gpt2-124m.yaml").model.width
    assert [int(figure.replace(",", "")) for figure in shown.groups()] == [
        further,
        GPT2_IDS + further,
        further * width,
    ]


def test_the_ports_that_are_published_are_named() -> None:
    text = (ROOT / "docker/compose.yaml").read_text()
    published = re.findall(r'ports: \["127\.0\.0\.1:\$\{\w+:-(\d+)\}', text)
    header = text.partition("\nname:")[0]
    section = (ROOT / "docs/operate.md").read_text().partition("### One server, with Compose")[2].partition("###")[0]
    assert len(published) == 4
    for where in (header, section):
        assert [port for port in published if not re.search(rf"\b{port}\b", where)] == []
        assert "make docker/.env" in where
