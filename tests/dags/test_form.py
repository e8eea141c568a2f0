"""The trigger form and what it changes in a recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from airflow.sdk.exceptions import ParamValidationError

from dags.parts import form
from pipeline.recipe import Recipe, load

PARAMS = form.params("somewhere", "recipes/demo.yaml")
DESCRIPTIONS = {key: schema.get("description", "") for key, schema in form.leaves(Recipe.model_json_schema())}


def plain(data: dict, prefix: str = "") -> dict:
    """Dotted keys of nested data, as far as the recipe's sections go."""
    values = {}
    for key, value in data.items():
        section = isinstance(value, dict) and not key.startswith(("max_", "languages", "mix", "by_language", "tasks"))
        values |= plain(value, f"{prefix}{key}.") if section else {f"{prefix}{key}": value}
    return values


def test_every_value_of_the_recipe_has_a_field_and_no_field_is_invented():
    values = set(plain(load("recipes/demo.yaml").model_dump(mode="json")))
    # Memorization is measured by a command, which reads the recipe itself.
    expected = {key for key in values if key != "name" and not key.startswith(("input.", "memorization."))}
    # Keys of another kind of a section: rl's optimizer is AdamW in this recipe.
    assert set(form.recipe_params()) == expected | {"rl.optimizer.muon_lr"}


def test_every_field_is_described():
    undescribed = [key for key, description in DESCRIPTIONS.items() if len(description) < 10]
    assert not undescribed, "give these a description in pipeline/recipe/"


def test_no_reference_is_left_in_any_schema():
    assert '"$' not in json.dumps([param.schema for param in PARAMS.values()])


def test_every_field_takes_its_own_value_of_the_demo_and_null():
    values = plain(load("recipes/demo.yaml").model_dump(mode="json"))
    for key, param in form.recipe_params().items():
        assert param.resolve(None) is None
        if key not in values:
            continue
        value = {True: "yes", False: "no"}[values[key]] if isinstance(values[key], bool) else values[key]
        assert param.resolve(value) == value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("filter.languages", {"en": 1.5}),
        ("pretrain.steps", 0),
        ("pretrain.steps", "many"),
        ("tokenizer.source", "gpt9"),
        ("rl.tasks", {"chess": 1}),
        ("assistant.tools", ["oracle"]),
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
    assert PARAMS["extract.language_gate"].description.startswith(DESCRIPTIONS["extract.language_gate"])
    assert PARAMS["extract.extractor"].schema["enum"] == ["precision", "default", "fast", "resiliparse", None]
    assert PARAMS["extract.extractor"].schema["values_display"] == {"null": "as in the recipe"}


def test_what_people_change_first_comes_first_and_all_else_is_in_one_section():
    first = [key for key, param in PARAMS.items() if "section" not in param.schema]
    assert first == ["recipe", "warcs", "crawl", "max_warcs", *form.FIRST]
    assert list(PARAMS)[: len(first)] == first
    assert {param.schema.get("section") for param in PARAMS.values()} == {None, form.MORE}
    assert len(form.params("somewhere", "recipes/demo.yaml", ("model", "pretrain", "sft", "rl"))) > 60
    of_model = form.params("somewhere", "recipes/demo.yaml", ("model", "pretrain", "sft", "rl"))
    assert [key for key, param in of_model.items() if "section" not in param.schema] == ["recipe", *form.FIRST[1:7]]


def test_the_help_gives_description_range_and_the_values_of_the_recipes():
    rows = DESCRIPTIONS["deduplicate.rows"]
    assert PARAMS["deduplicate.rows"].description == f"{rows} From 1. All recipes: 8"
    steps = PARAMS["pretrain.steps"].description
    for name in ("demo", "fineweb", "gpt2-124m"):
        value = load(f"recipes/{name}.yaml").pretrain.steps
        assert re.search(rf"\b{name}[a-z0-9., -]*: {value}\b", steps), steps
    assert steps.startswith(f"{DESCRIPTIONS['pretrain.steps']} From 1. demo")
    assert PARAMS["deduplicate.verify"].description.endswith("All recipes: yes")


def test_the_proposed_recipe_is_named_first_and_only_its_long_values_are_shown():
    other = form.params("somewhere", "recipes/multilingual.yaml")
    assert re.search(r"multilingual[a-z, ]*: \d", other["pretrain.steps"].description)
    assert other["filter.languages"].description.endswith('gpt2-124m: {"en": 0.65}')
    stop_words = other["extract.languages"].description
    assert re.search(r"multilingual: \{.*\}; demo, fineweb, gpt2-1\.5b, gpt2-124m: …$", stop_words)
    absolute = form.params("somewhere", str(Path("recipes/demo.yaml").resolve()))
    assert absolute["deduplicate.rows"].description == PARAMS["deduplicate.rows"].description


def test_a_recipe_of_the_users_own_is_named_by_its_path(tmp_path):
    own = tmp_path / "demo.yaml"
    own.write_text(load("recipes/demo.yaml", {"pretrain.steps": 7}).to_yaml())
    assert f"From 1. {own}: 7; demo: 175" in form.params("somewhere", str(own))["pretrain.steps"].description


def test_the_range_and_description_lead():
    assert PARAMS["pretrain.optimizer.lr"].description.startswith(DESCRIPTIONS["pretrain.optimizer.lr"])


@pytest.mark.parametrize("recipe", ["recipes/none.yaml", "s3://bucket/recipe.yaml"])
def test_a_recipe_that_cannot_be_read_here_leaves_the_form_with_the_values_of_the_others(recipe):
    params = form.params("somewhere", recipe)
    assert params["deduplicate.rows"].description == f"{DESCRIPTIONS['deduplicate.rows']} From 1. All recipes: 8"
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


def test_another_kind_of_a_section_takes_its_own_keys_and_leaves_the_others():
    changed = load(
        "recipes/demo.yaml", form.overrides({"pretrain.optimizer.kind": "adamw", "deduplicate.verify": "no"})
    )
    assert changed.section("pretrain")["optimizer"]["kind"] == "adamw"
    assert "muon_lr" not in changed.section("pretrain")["optimizer"]
    assert "min_jaccard" not in changed.section("deduplicate")
    muon = {"rl.optimizer.kind": "muon", "rl.optimizer.muon_lr": 0.1}
    assert load("recipes/demo.yaml", form.overrides(muon)).rl.optimizer.muon_lr == 0.1


def test_a_crawl_takes_the_place_of_files():
    assert form.overrides({"crawl": "CC-MAIN-2025-05"}) == {"input.warcs": [], "input.crawl": "CC-MAIN-2025-05"}


def test_a_key_that_no_field_has_reaches_the_recipe_which_refuses_it():
    assert form.overrides({"sft.epoch": 2}) == {"sft.epoch": 2}


def test_the_log_says_what_a_form_changes():
    changed = {
        "pretrain.steps": 10,
        "rl.steps": 37,
        "pretrain.optimizer.betas": [0.9, 0.95],
        "filter.languages": {"en": 1},
    }
    assert form.changes("recipes/demo.yaml", changed | {"rl.optimizer.muon_lr": 0.1}) == [
        "pretrain.steps: 10 (recipe: 175)",
        'filter.languages: {"en": 1} (recipe: {"en": 0.65})',
        "rl.optimizer.muon_lr: 0.1",
    ]
    assert form.changes("recipes/none.yaml", {"pretrain.steps": 10}) == ["pretrain.steps: 10"]
