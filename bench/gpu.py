"""Training speed of three models on one GPU, in bf16: `make bench-gpu`, under eight minutes.

    python -m bench.gpu [--models gpt2-124m gpt2-1.5b depth-20] [--seconds 40] [--dry]

GPT-2 of 124 M and 1.56 B parameters and a model of depth 20, with the fused loss and compiled layers, on random tokens.
Prints a Markdown table: tokens/s, MFU, peak memory; beside them the goal, and what llm.c and nanochat published.

MFU is PaLM's (Chowdhery et al. 2022, appendix B): tokens/s x (6 N + 12 L H Q T) / peak, with N parameters, L layers, H
heads of dimension Q, T tokens per window, and the GPU's dense bf16 peak. Recomputed activations do not count as work;
the half of attention that the causal mask discards does. `--dry` takes tiny models on any machine: it shows that this
program runs, not how fast.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import sys
import time
from collections.abc import Callable

import torch

from bench.folders import HOME
from inference import network
from pipeline import errors
from pipeline.errors import MachineError
from pipeline.recipe import Recipe, load
from training.depth import dial
from training.engine.engine import Engine
from training.engine.losses import token_loss
from training.launch import processes
from training.launch.command import Shape
from training.launch.processes import World

VOCABULARY = 50_304  # GPT-2's ids and our special tokens, as a multiple of 64
MODELS: dict[str, Callable[[], Recipe]] = {
    "gpt2-124m": lambda: load(HOME / "recipes/gpt2-124m.yaml"),
    "depth-20": lambda: dial(20, str(HOME / "recipes/fineweb.yaml"))[0],
    "gpt2-1.5b": lambda: load(HOME / "recipes/gpt2-1.5b.yaml"),
}
GOALS = {"gpt2-124m": 0.50, "gpt2-1.5b": 0.55}  # MFU on one H200
# Per GPU, of a node of eight. llm.c: the comments that head its scripts (commit 039904e), 524,288 tokens in 300 ms on
# A100 and 1,048,576 in 2.80 s on H100, MFU by the formula above (docs/reproduce-gpt2.md). nanochat: its README (commit
# 007f322), 4.33e19 FLOP, as it counts them, in 10,949 s on eight H100, for depth 24.
PUBLISHED = {
    "gpt2-124m": "llm.c, A100: 218,000 tokens/s, 60 %",
    "gpt2-1.5b": "llm.c, H100: 46,800 tokens/s, 49 %",
    "depth-20": "nanochat, depth 24, H100: 494 TFLOP/s, 50 % by its own count",
}
TINY = {"layers": 2, "width": 64, "heads": 1, "kv_heads": 1, "head_dim": 64, "mlp_width": 128, "window": 64}
TINY_VOCABULARY = 512
WARM_UP = 3  # untimed steps, in which layers are compiled
ROWS = 32  # per step: enough micro-batches that the optimizer has the share of time that it has in a real run


def tiny(recipe: Recipe) -> Recipe:
    """The recipe with a model that any machine can train."""
    changed = {"model": recipe.model.model_copy(update=TINY)}
    return recipe.model_copy(update=changed | {"pretrain": recipe.pretrain.model_copy(update={"window": 64})})


def measure(recipe: Recipe, world: World, seconds: float, micro: int, dry: bool) -> tuple[float, float, int, int]:
    """Tokens per second, FLOP per token, peak bytes and parameters, with micro-batches of `micro` rows.

    Raises `torch.OutOfMemoryError` where they do not fit.
    """
    # 1. The model, built on the device, where a billion random weights take no time.
    section = recipe.pretrain
    vocabulary = TINY_VOCABULARY if dry else VOCABULARY
    if not dry:
        torch.compiler.reset()  # else the second shape it sees is compiled as a dynamic one, which is slower
    torch.manual_seed(recipe.seed)
    with world.device:
        net = network.build(recipe.model, vocabulary, 0, 1, recipe.seed)
    shape = Shape(micro_batch=micro, fused_loss=True, compile=not dry)
    engine = Engine(net, section.optimizer, 10**6, section.precision, world, shape)
    # 2. Steps on random tokens, until the time is over; the clock starts after the warm-up.
    taken, started = 0, 0.0
    try:
        while taken < WARM_UP or time.perf_counter() - started < seconds:
            ids = torch.randint(vocabulary, (ROWS, section.window + 1))
            engine.step({"ids": ids, "mask": torch.ones_like(ids)}, token_loss)  # ends with the loss on the CPU
            taken += 1
            if taken == WARM_UP:
                started = time.perf_counter()
        speed = (taken - WARM_UP) * ROWS * section.window / (time.perf_counter() - started)
    finally:
        engine.deepspeed.destroy()  # also where memory ran out: the next, smaller micro-batch needs it
    peak = torch.cuda.max_memory_allocated() if world.device.type == "cuda" else 0
    return speed, network.flops_per_token(net, section.window), peak, network.parameters(net)


def row(name: str, recipe: Recipe, world: World, seconds: float, dry: bool) -> str:
    """A row of the table, measured with the largest micro-batch that fits."""
    peak_flops = network.peak_flops(world.device)
    for micro in (32, 16, 8, 4, 2, 1):
        gc.collect()  # an engine and its hooks refer to each other, so that only this frees the last try's memory
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            speed, flops, peak, parameters = measure(recipe, world, seconds, micro, dry)
        except torch.OutOfMemoryError:
            print(f"{name}: a micro-batch of {micro} does not fit", file=sys.stderr, flush=True)
            continue
        mfu = f"{speed * flops / peak_flops:.1%}" if peak_flops else "–"
        goal = f"{GOALS[name]:.0%}" if name in GOALS else "–"
        return (
            f"| {name} | {parameters / 1e6:.0f} M | {micro} | {speed:,.0f} | {speed * flops / 1e12:.0f} | {mfu} | "
            f"{goal} | {peak / 2**30:.1f} | {PUBLISHED[name]} |"
        )
    return f"| {name} | | | not even a micro-batch of 1 fits | | | | | {PUBLISHED[name]} |"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=40, help="timed seconds per model")
    parser.add_argument("--dry", action="store_true", help="tiny models, on any machine")
    options = parser.parse_args()
    if not (options.dry or torch.cuda.is_available()):
        raise MachineError(
            "torch sees no GPU on this machine, and without one the figures say nothing",
            "run bench-train, which needs none, or give --dry to see whether this program runs",
        )
    began, world = time.perf_counter(), processes.start(1)
    card = torch.cuda.get_device_name() if world.device.type == "cuda" else "no GPU"
    print(f"{datetime.date.today()}, {card}, bf16, one process{', tiny models' if options.dry else ''}\n")
    print("| model | parameters | micro-batch | tokens/s | TFLOP/s | MFU | goal, H200 | GiB | published |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---|", flush=True)
    for name in options.models:
        recipe = tiny(MODELS[name]()) if options.dry else MODELS[name]()
        print(row(name, recipe, world, options.seconds, options.dry), flush=True)
    print(f"\n{(time.perf_counter() - began) / 60:.1f} minutes in all.")


if __name__ == "__main__":
    errors.run(main)
