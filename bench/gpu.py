"""Training speed of three models on one GPU, in bf16: `make bench-gpu`, under eight minutes.

    python -m bench.gpu [--models gpt2-124m gpt2-1.5b depth-20] [--seconds 60]

GPT-2 of 124 M and 1.56 B parameters and a model of depth 20, with the fused loss and compiled layers, on random tokens.
Prints a Markdown table: tokens/s, MFU by PaLM's formula, memory; beside them what llm.c's scripts say of their runs.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline import errors
from pipeline.errors import MachineError
from pipeline.recipe import Recipe, load
from training import launch, model
from training.depth import dial
from training.engine import Engine, token_loss
from training.launch import Shape, World

HOME = Path(__file__).resolve().parents[1]
VOCABULARY = 50_304  # GPT-2's ids and our special tokens, as a multiple of 64
MODELS: dict[str, Callable[[], Recipe]] = {
    "gpt2-124m": lambda: load(HOME / "recipes/gpt2-124m.yaml"),
    "depth-20": lambda: dial(20, str(HOME / "recipes/fineweb.yaml"))[0],
    "gpt2-1.5b": lambda: load(HOME / "recipes/gpt2-1.5b.yaml"),
}
# Tokens a second and GPU, from the heads of llm.c's scripts (commit 039904e): 524,288 tokens in 300 ms on eight A100,
# 1,048,576 in 2.80 s on eight H100.
PUBLISHED = {"gpt2-124m": "llm.c, A100: 218,000", "gpt2-1.5b": "llm.c, H100: 46,800"}
WARM_UP = 3  # steps, in which layers are compiled
ROWS = 32  # of a step: enough micro-batches that the optimizer's share is a real run's


def measure(recipe: Recipe, world: World, seconds: float, micro: int) -> tuple[float, float, int, int]:
    """Tokens a second, FLOP a token, peak bytes and parameters with so many rows at once."""
    section = recipe.pretrain
    torch.manual_seed(recipe.seed)
    net = model.build(recipe.model, VOCABULARY, 0, 1, recipe.seed)
    shape = Shape(micro_batch=micro, fused_loss=True, compile=True)
    engine = Engine(net, section.optimizer, 10**6, section.precision, world, shape)
    taken, started = 0, 0.0
    try:
        while taken < WARM_UP or time.perf_counter() - started < seconds:
            ids = torch.randint(VOCABULARY, (ROWS, section.window + 1))
            engine.step({"ids": ids, "mask": torch.ones_like(ids)}, token_loss)  # ends with the loss on the CPU
            taken += 1
            if taken == WARM_UP:
                started = time.perf_counter()
    finally:
        engine.deepspeed.destroy()  # also where memory was short: the next try needs it
    speed = (taken - WARM_UP) * ROWS * section.window / (time.perf_counter() - started)
    return speed, model.flops_a_token(net, section.window), torch.cuda.max_memory_allocated(), model.parameters(net)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=60, help="timed, a model")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise MachineError("this machine has no GPU that torch sees", "run bench-train, which needs none")
    world = launch.start(1)
    promised = model.peak_flops(world.device)
    print(f"{datetime.date.today()}, {torch.cuda.get_device_name()}, bf16, one GPU\n")
    print("| model | parameters | rows at once | tokens/s | TFLOP/s | MFU | GiB | published |")
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    for name in given.models:
        recipe = MODELS[name]()
        for micro in (32, 16, 8, 4, 2, 1):
            gc.collect()  # an engine and its hooks hold each other
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            try:
                speed, each, peak, numbers = measure(recipe, world, given.seconds, micro)
            except torch.OutOfMemoryError:
                print(f"{name}: {micro} rows at once are too many", file=sys.stderr, flush=True)
                continue
            share = f"{speed * each / promised:.1%}" if promised else "–"
            print(
                f"| {name} | {numbers / 1e6:.0f} M | {micro} | {speed:,.0f} | {speed * each / 1e12:.0f} | {share} | "
                f"{peak / 2**30:.1f} | {PUBLISHED.get(name, '–')} |",
                flush=True,
            )
            break


if __name__ == "__main__":
    errors.run(main)
