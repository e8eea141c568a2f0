"""The trigger form and what it changes in a recipe."""

from __future__ import annotations

import json

import pytest
from airflow.sdk.exceptions import ParamValidationError

from dags.parts import form
from pipeline.recipe import Recipe, load

PARAMS = form.params("somewhere", "recipes/demo.yaml")


def plain(data: dict, prefix: str = "") -> dict:
    """Dotted keys of nested data, as far as the recipe's sections go."""
    found = {}
    for key, value in data.items():
        section = isinstance(value, dict) and not key.startswith(("max_", "languages", "mix", "by_language"))
        found |= plain(value, f"{prefix}{key}.") if section else {f"{prefix}{key}": value}
    return found


def test_every_value_of_the_recipe_has_a_field_and_no_field_is_invented():
    values = set(plain(load("recipes/demo.yaml").model_dump(mode="json")))
    expected = {key for key in values if key != "name" and not key.startswith("input.")}
    assert set(form.recipe_params()) == expected


def test_every_field_says_what_it_is():
    mute = [key for key, schema in form.leaves(Recipe.model_json_schema()) if len(schema.get("description", "")) < 10]
    assert not mute, "give these a description in pipeline/recipe/"


def test_no_reference_is_left_in_any_schema():
    assert '"$' not in json.dumps([param.schema for param in PARAMS.values()])


def test_every_field_takes_its_own_value_of_the_demo_and_null():
    values = plain(load("recipes/demo.yaml").model_dump(mode="json"))
    for key, param in form.recipe_params().items():
        assert param.resolve(None) is None
        value = {True: "yes", False: "no"}[values[key]] if isinstance(values[key], bool) else values[key]
        assert param.resolve(value) == value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("filter.languages", {"en": 1.5}),
        ("pretrain.steps", 0),
        ("pretrain.steps", "many"),
        ("tokenizer.source", "gpt9"),
        ("rl.task", "chess"),
        ("pretrain.optimizer.betas", [0.9]),
        ("filter.gopher.max_top_ngram_chars", {"2": 7}),
        ("redact.kinds", ["SHOE_SIZE"]),
        ("max_warcs", 0),
        ("crawl", "../etc"),
        ("deduplicate.verify", "perhaps"),
    ],
)
def test_what_the_recipe_would_refuse_the_form_refuses(key, value):
    with pytest.raises(ParamValidationError):
        PARAMS[key].resolve(value)


def test_ranges_choices_and_words_come_from_the_recipe():
    assert PARAMS["extract.language_gate"].schema["maximum"] == 1
    assert PARAMS["extract.language_gate"].description.startswith("Before extraction: a page is dropped when")
    assert PARAMS["extract.extractor"].schema["enum"] == ["precision", "default", "fast", "resiliparse", None]
    assert PARAMS["extract.extractor"].schema["values_display"] == {"null": "as the recipe says"}
    assert PARAMS["pretrain.optimizer.lr"].schema["section"] == "pretrain · optimizer"


def test_the_help_says_what_may_stand_there_and_what_the_recipe_says():
    assert PARAMS["deduplicate.rows"].description == "Hashes (rows) per band. From 1. recipes/demo.yaml: 8"
    assert PARAMS["extract.language_gate"].description.endswith("From 0 to 1. recipes/demo.yaml: 0.1")
    assert PARAMS["deduplicate.verify"].description.endswith("recipes/demo.yaml: yes")
    assert PARAMS["pretrain.optimizer.lr"].description.startswith("Peak learning rate of AdamW")


@pytest.mark.parametrize("recipe", ["recipes/none.yaml", "s3://bucket/recipe.yaml"])
def test_a_recipe_that_cannot_be_read_here_leaves_the_form_without_its_values(recipe):
    params = form.params("somewhere", recipe)
    assert params["deduplicate.rows"].description == "Hashes (rows) per band. From 1."
    assert params["recipe"].value == recipe


def test_a_form_offers_what_there_is_to_choose():
    assert set(PARAMS["recipe"].schema["examples"]) >= {"recipes/demo.yaml", "recipes/fineweb.yaml"}
    assert PARAMS["crawl"].schema["examples"] == ["CC-MAIN-2025-05"]
    assert PARAMS["tokenizer.source"].schema["examples"] == ["train", "gpt2", "cl100k_base"]


def test_an_empty_form_changes_nothing():
    assert form.overrides({key: param.value for key, param in PARAMS.items()}) == {}


def test_a_filled_form_changes_what_it_says():
    filled = {key: param.value for key, param in PARAMS.items()} | {
        "warcs": ["a.warc.gz"],
        "max_warcs": 3,
        "rl.steps": 2,
        "deduplicate.verify": "no",
    }
    recipe = load("recipes/demo.yaml", form.overrides(filled))
    assert isinstance(recipe, Recipe)
    assert (recipe.input.warcs, recipe.input.crawl, recipe.input.max_warcs) == (["a.warc.gz"], None, 3)
    assert recipe.rl.steps == 2
    assert recipe.deduplicate.verify is False


def test_a_crawl_takes_the_place_of_files():
    assert form.overrides({"crawl": "CC-MAIN-2025-05"}) == {"input.warcs": [], "input.crawl": "CC-MAIN-2025-05"}


def test_a_key_that_no_field_has_reaches_the_recipe_which_refuses_it():
    assert form.overrides({"sft.epoch": 2}) == {"sft.epoch": 2}
