"""One dial: a recipe for a model of so many layers, by compute-optimal rules.

    python -m training.depth 20 --recipe recipes/fineweb.yaml > my.yaml

Fills `model` and the schedule of `pretrain`; all else is the given recipe's. What it chose stands above the recipe it
prints, and the recipe is complete: the dial has no say afterwards.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from inference.network import configuration, flops_per_token, parameters
from pipeline import errors
from pipeline.errors import RecipeError
from pipeline.recipe import Recipe, TrainedTokenizer, load

ASPECT = 64  # width a layer: nanochat's
HEAD_DIM = 128  # nanochat's, and Qwen3's
MLP = 8 / 3  # of the width: as many numbers as GPT's 4 with SwiGLU's third matrix (Shazeer 2020, section 2)
MLP_MULTIPLE = 64  # a shape that tensor cores fill
TOKENS_A_PARAMETER = 20  # Chinchilla (Hoffmann et al. 2022, table 3)


@dataclass(frozen=True)
class Size:
    """What a depth comes to. `flops`: of the whole pretraining, by PaLM's formula. `batch`: rows a step."""

    parameters: int
    tokens: int
    flops: float
    lr: float
    batch: int
    steps: int


def shape(depth: int, recipe: Recipe) -> dict[str, Any]:
    """The `model` section."""
    width = ASPECT * depth
    heads = max(1, math.ceil(width / HEAD_DIM))
    mlp = math.ceil(MLP * width / MLP_MULTIPLE) * MLP_MULTIPLE
    return {
        "preset": "qwen3", "layers": depth, "width": width, "heads": heads, "kv_heads": heads,
        "head_dim": HEAD_DIM, "mlp_width": mlp, "window": recipe.model.window, "tied": recipe.model.tied,
    }  # fmt: skip


def size(recipe: Recipe, vocabulary: int) -> Size:
    """Horizon, rate and batch of the recipe's model.

    Rate and batch by the fits of DeepSeek LLM (Bi et al. 2024, section 3.1) to the compute C: 0.3118 C^-0.1250, and
    0.2920 C^0.3271 tokens, here the nearest power of two of rows.
    """
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(configuration(recipe.model, vocabulary, 0, 0))
    window = recipe.pretrain.window
    tokens = TOKENS_A_PARAMETER * parameters(network)
    flops = flops_per_token(network, window) * tokens
    rows = 2 ** max(0, round(math.log2(0.2920 * flops**0.3271 / window)))
    return Size(
        parameters(network), tokens, flops, float(f"{0.3118 * flops**-0.1250:.2g}"), rows,
        math.ceil(tokens / (rows * window)),
    )  # fmt: skip


def dial(depth: int, path: str) -> tuple[Recipe, Size]:
    """The recipe in `path` with a model of `depth` layers."""
    if depth < 1:
        raise RecipeError(f"a depth of {depth} makes no model", "give 1 or more")
    base = load(path)
    if not isinstance(base.tokenizer, TrainedTokenizer):
        raise RecipeError(
            f"{path}: the tokenizer {base.tokenizer.source!r} says how many ids there are only once it is loaded",
            "start from a recipe with tokenizer.source: train",
        )
    vocabulary = base.tokenizer.vocabulary
    changes = {f"model.{key}": value for key, value in shape(depth, base).items()} | {"name": f"{base.name}-d{depth}"}
    found = size(load(path, changes), vocabulary)
    changes |= {"pretrain.optimizer.lr": found.lr, "pretrain.batch": found.batch, "pretrain.steps": found.steps}
    return load(path, changes), found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("depth", type=int, help="layers")
    parser.add_argument("--recipe", required=True, help="recipe for all that the dial does not set")
    given = parser.parse_args()
    recipe, found = dial(given.depth, given.recipe)
    print(f"# {given.recipe} with a model of depth {given.depth}: {found.parameters:,} parameters, ")
    print(f"# {found.tokens:,} tokens ({TOKENS_A_PARAMETER} a parameter), {found.flops:.2e} FLOP.")
    print("# The rules and their sources: training/depth.py. The rate is AdamW's; Muon's is the given recipe's.")
    print(recipe.to_yaml(), end="")


if __name__ == "__main__":
    errors.run(main)
