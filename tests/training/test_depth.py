"""Recipes from a depth, against shapes and fits that others published."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from inference.network import configuration, parameters
from pipeline.errors import RecipeError
from pipeline.recipe import load, parse
from training.depth import dial

RECIPE = "recipes/fineweb.yaml"


def test_a_depth_makes_a_complete_recipe() -> None:
    recipe, chosen = dial(20, RECIPE)
    model, pretrain = recipe.model, recipe.pretrain
    # nanochat's depth 20: 1,280 wide, 10 heads of 128.
    assert (model.layers, model.width, model.heads, model.head_dim) == (20, 1280, 10, 128)
    assert model.mlp_width == 3456  # 8/3 x 1280 = 3413.3
    assert chosen.tokens == 20 * chosen.parameters
    assert pretrain.steps * pretrain.batch * pretrain.window == pytest.approx(chosen.tokens, rel=1e-3)
    assert parse(recipe.to_yaml(), "printed") == recipe
    base = load(RECIPE)
    assert recipe.filter == base.filter and recipe.sft == base.sft and recipe.name == "fineweb-d20"


def test_rate_and_batch_are_deepseeks() -> None:
    """Their own 7 B run: C of about 8e22 gave them 4.2e-4 and 2304 rows of 4,096 tokens (section 3.1 and table 2)."""
    c = 6 * 6.9e9 * 2e12
    assert 0.3118 * c**-0.1250 == pytest.approx(4.2e-4, rel=0.15)
    assert 0.2920 * c**0.3271 == pytest.approx(2304 * 4096, rel=0.15)
    _, chosen = dial(12, RECIPE)
    assert chosen.lr == pytest.approx(0.3118 * chosen.flops**-0.1250, rel=0.05)
    assert chosen.batch * 1024 == pytest.approx(0.2920 * chosen.flops**0.3271, rel=0.5)


def test_a_deeper_model_is_larger_slower_and_gentler() -> None:
    sizes = [dial(depth, RECIPE)[1] for depth in (4, 8, 12, 20, 26)]
    for one, other in itertools.pairwise(sizes):
        assert one.parameters < other.parameters and one.flops < other.flops
        assert one.lr > other.lr and one.batch <= other.batch and one.tokens < other.tokens


@pytest.mark.parametrize(("name", "count"), [("gpt2-124m", 124_439_808), ("gpt2-1.5b", 1_557_611_200)])
def test_gpt2_has_as_many_parameters_as_gpt2(name: str, count: int) -> None:
    recipe = load(Path("recipes") / f"{name}.yaml")
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(configuration(recipe.model, 50_257, 0, 0))
    assert parameters(network) == count
    assert round(recipe.pretrain.optimizer.warmup * recipe.pretrain.steps) == 700


def test_a_depth_or_tokenizer_without_a_size_is_refused() -> None:
    with pytest.raises(RecipeError, match="makes no model"):
        dial(0, RECIPE)
    with pytest.raises(RecipeError, match="only once it is loaded"):
        dial(12, "recipes/gpt2-124m.yaml")
