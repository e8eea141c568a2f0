"""A recipe from one number, the depth: model, horizon, learning rate and batch by compute-optimal rules.

    python -m training.depth 20 --recipe recipes/fineweb.yaml > my.yaml

Sets `model`, and the schedule of `pretrain`; all else is the given recipe's. The printed recipe is complete, with the
choices as a comment above: no rule of this file decides what it builds later.
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

ASPECT = 64  # hidden size per layer: nanochat's
HEAD_DIM = 128  # nanochat's, and Qwen3's
MLP = 8 / 3  # of the hidden size: with SwiGLU's third matrix as many weights as GPT's 4 (Shazeer 2020, section 2)
MLP_MULTIPLE = 64  # so that the matrices fill the tiles of tensor cores
TOKENS_PER_PARAMETER = 20  # Chinchilla (Hoffmann et al. 2022, table 3)


@dataclass(frozen=True)
class Size:
    """What follows from a depth. `flops`: of the whole pretraining, by PaLM's formula. `batch`: rows per step."""

    parameters: int
    tokens: int
    flops: float
    lr: float
    batch: int
    steps: int


def shape(depth: int, recipe: Recipe) -> dict[str, Any]:
    """The `model` section of a depth: `ASPECT` times as wide, without grouped-query attention."""
    width = ASPECT * depth
    heads = max(1, math.ceil(width / HEAD_DIM))
    mlp = math.ceil(MLP * width / MLP_MULTIPLE) * MLP_MULTIPLE
    return {
        "preset": "qwen3", "layers": depth, "width": width, "heads": heads, "kv_heads": heads,
        "head_dim": HEAD_DIM, "mlp_width": mlp, "window": recipe.model.window, "tied": recipe.model.tied,
    }  # fmt: skip


def size(recipe: Recipe, vocabulary: int) -> Size:
    """Horizon, learning rate and batch for the recipe's model.

    Learning rate and batch by the fits of DeepSeek LLM (Bi et al. 2024, section 3.1) to the compute C:
    0.3118 C^-0.1250, and 0.2920 C^0.3271 tokens, here rounded to a power of two of rows.
    """
    # On the meta device a network has shapes but no numbers: its parameters are counted without memory for them.
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(configuration(recipe.model, vocabulary, 0, 0))
    window = recipe.pretrain.window
    tokens = TOKENS_PER_PARAMETER * parameters(network)
    flops = flops_per_token(network, window) * tokens
    rows = 2 ** max(0, round(math.log2(0.2920 * flops**0.3271 / window)))
    return Size(
        parameters(network), tokens, flops, float(f"{0.3118 * flops**-0.1250:.2g}"), rows,
        math.ceil(tokens / (rows * window)),
    )  # fmt: skip


def dial(depth: int, path: str) -> tuple[Recipe, Size]:
    """The recipe in `path` with a model of `depth` layers."""
    if depth < 1:
        raise RecipeError(f"a depth of {depth} makes no model: it is the number of layers", "give 1 or more")
    base = load(path)
    if not isinstance(base.tokenizer, TrainedTokenizer):
        raise RecipeError(
            f"{path}: the size of the tokenizer {base.tokenizer.source!r} is known only once it is loaded, and the "
            "embeddings count among the parameters",
            "start from a recipe with tokenizer.source: train",
        )
    vocabulary = base.tokenizer.vocabulary
    changes = {f"model.{key}": value for key, value in shape(depth, base).items()} | {"name": f"{base.name}-d{depth}"}
    chosen = size(load(path, changes), vocabulary)
    changes |= {"pretrain.optimizer.lr": chosen.lr, "pretrain.batch": chosen.batch, "pretrain.steps": chosen.steps}
    return load(path, changes), chosen


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("depth", type=int, help="layers")
    parser.add_argument("--recipe", required=True, help="recipe for everything that the depth does not decide")
    options = parser.parse_args()
    recipe, chosen = dial(options.depth, options.recipe)
    print(f"# {options.recipe} with a model of depth {options.depth}: {chosen.parameters:,} parameters,")
    print(f"# {chosen.tokens:,} tokens ({TOKENS_PER_PARAMETER} per parameter), {chosen.flops:.2e} FLOP.")
    print("# The rules and their sources: training/depth.py. The rate is AdamW's; Muon's is the given recipe's.")
    print(recipe.to_yaml(), end="")


if __name__ == "__main__":
    errors.run(main)
