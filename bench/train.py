"""A training step beside HF Trainer with DeepSpeed and a bare PyTorch loop: `make bench-train`.

    python -m bench.train [--recipe recipes/demo.yaml] [--repeats 7] [--steps 4]

One process, one GPU or one core, the same model, weights, batches and AdamW for all. The contestants take turns, so
that a slow minute of the machine slows them all, and the median of their turns counts. The first step of a turn is not
timed. On a CPU the process's CPU seconds count, so that other load on the machine hardly matters. Prints a Markdown
table; the first losses in it show that all compute the same.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from bench.folders import HOME
from inference import network
from pipeline.recipe import Recipe, TrainedTokenizer, load
from training.engine.engine import Engine, divisor, micro_rows
from training.engine.losses import token_loss
from training.engine.optimizer import parameter_groups
from training.launch import processes
from training.launch.command import Shape
from training.launch.processes import World

ACCELERATE = "accelerate==1.15.0"  # Trainer needs it; nothing else here does
clock = time.perf_counter if torch.cuda.is_available() else time.process_time
Turn = Callable[
    [list[Tensor]], tuple[float, float]
]  # batches -> (seconds after the first step, loss of the first step)


def ours(recipe: Recipe, net: nn.Module, world: World, shape: Shape) -> Turn:
    """Our engine."""
    section = recipe.pretrain
    engine = Engine(net, section.optimizer, 10**6, section.precision, world, shape)

    def turn(batches: list[Tensor]) -> tuple[float, float]:
        first = engine.step({"ids": batches[0], "mask": torch.ones_like(batches[0])}, token_loss).loss
        started = clock()
        for ids in batches[1:]:
            engine.step({"ids": ids, "mask": torch.ones_like(ids)}, token_loss)
        return clock() - started, first

    return turn


def bare(recipe: Recipe, net: nn.Module, world: World, micro: int) -> Turn:
    """A loop written by hand: forward, backward, clip, step, with the recipe's parameter groups."""
    section = recipe.pretrain
    net.to(world.device).train()
    fused = world.device.type == "cuda"
    optimizer = torch.optim.AdamW(parameter_groups(net, section.optimizer), fused=fused or None)

    def step(ids: Tensor) -> float:
        total = 0.0
        for part in torch.split(ids, micro):
            rows = part.to(world.device)
            with torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=section.precision == "bf16"):
                logits = net(input_ids=rows[:, :-1], use_cache=False).logits
            flat = logits.float().flatten(0, 1)
            # A mean over the micro-batch, weighted by its share of the batch's rows.
            loss = nn.functional.cross_entropy(flat, rows[:, 1:].flatten()) * len(part) / len(ids)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(net.parameters(), section.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()
        return total

    def turn(batches: list[Tensor]) -> tuple[float, float]:
        first = step(batches[0])
        started = clock()
        for ids in batches[1:]:
            step(ids)
        return clock() - started, first

    return turn


def trainer(recipe: Recipe, net: nn.Module, world: World, micro: int) -> Turn:
    """`transformers.Trainer` with DeepSpeed's ZeRO 1."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    section, optimizer = recipe.pretrain, recipe.pretrain.optimizer
    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
    }

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Times at which the steps ended."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(clock())

    def turn(batches: list[Tensor]) -> tuple[float, float]:
        # transformers shifts labels by itself, so that a row has one target less than ours.
        rows = [{"input_ids": row[:-1], "labels": row[:-1]} for ids in batches for row in ids]
        timer = Clock()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, per_device_train_batch_size=micro, gradient_accumulation_steps=section.batch // micro,
                max_steps=len(batches), learning_rate=optimizer.lr, weight_decay=optimizer.weight_decay,
                adam_beta1=optimizer.betas[0], adam_beta2=optimizer.betas[1], max_grad_norm=optimizer.clip,
                lr_scheduler_type="constant", bf16=section.precision == "bf16", use_cpu=world.device.type == "cpu",
                deepspeed=config, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
                dataloader_pin_memory=False, train_sampling_strategy="sequential",
            )  # fmt: skip
            loop = Trainer(net, arguments, train_dataset=rows, callbacks=[timer])
            loop.train()
        return timer.ends[-1] - timer.ends[0], float(loop.state.log_history[0]["loss"])

    return turn


def start_with_accelerate() -> NoReturn:
    """Install accelerate beside the environment, and start this program again: transformers looks for it only once."""
    packages = HOME / ".crawl2chat/bench-packages"
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "pip", "install", "-q", "--no-deps", "--target", packages, ACCELERATE], check=True)
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(HOME), str(packages)]))
    command = [sys.executable, "-m", "bench.train", *sys.argv[1:]]
    os.execve(sys.executable, command, os.environ | {"PYTHONPATH": path})


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=HOME / "recipes/demo.yaml")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="timed steps per turn")
    options = parser.parse_args()
    if importlib.util.find_spec("accelerate") is None:
        start_with_accelerate()
    # 1. The contestants, each with a model of the same weights.
    recipe = load(options.recipe, {"pretrain.optimizer.kind": "adamw"})
    if not isinstance(recipe.tokenizer, TrainedTokenizer):
        sys.exit(f"{options.recipe} does not name its vocabulary: choose a recipe whose tokenizer.source is 'train'")
    section, vocabulary = recipe.pretrain, recipe.tokenizer.vocabulary
    world = processes.start(recipe.seed)
    os.environ["OMP_NUM_THREADS"] = "1"  # else accelerate takes all cores
    torch.set_num_threads(1)
    micro = divisor(section.batch, micro_rows(section.batch, section.window, vocabulary, world.device.type))

    def net() -> nn.Module:
        return network.build(recipe.model, vocabulary, 0, 1, recipe.seed)

    contestants: dict[str, Turn] = {
        "ours": ours(recipe, net(), world, Shape()),
        "ours, --fused-loss": ours(recipe, net(), world, Shape(fused_loss=True)),
        "ours, --fused-loss --compile": ours(recipe, net(), world, Shape(fused_loss=True, compile=True)),
        f"bare PyTorch, micro-batch {micro}": bare(recipe, net(), world, micro),
        f"bare PyTorch, micro-batch {section.batch}": bare(recipe, net(), world, section.batch),
        f"HF Trainer + DeepSpeed, micro-batch {micro}": trainer(recipe, net(), world, micro),
        f"HF Trainer + DeepSpeed, micro-batch {section.batch}": trainer(recipe, net(), world, section.batch),
    }
    # 2. Turns: all contestants get the same random batches, and the first loss of each is kept.
    generator = torch.Generator().manual_seed(recipe.seed)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    losses: dict[str, float] = {}
    for _ in range(options.repeats):
        shape = (options.steps + 1, section.batch, section.window + 1)
        batches = list(torch.randint(vocabulary, shape, generator=generator))
        for name, turn in contestants.items():
            spent, loss = turn(batches)
            seconds[name].append(spent)
            losses.setdefault(name, loss)
            print(f"{name}: {spent:.2f} s", file=sys.stderr, flush=True)
    # 3. The table.
    tokens = options.steps * section.batch * section.window
    speed = {name: tokens / statistics.median(each) for name, each in seconds.items()}
    where = torch.cuda.get_device_name() if world.device.type == "cuda" else "one CPU core"
    size, batch = f"{network.parameters(net()) / 1e6:.2f} M parameters", f"{section.batch} x {section.window} tokens"
    print(f"{datetime.date.today()}, {where}, {size}, {section.precision}, {batch} per step, ", end="")
    print(f"median of {options.repeats} turns of {options.steps} steps\n")
    print("| | tokens per second | slowest–fastest turn | ours / this | first loss |\n|---|---:|---:|---:|---:|")
    for name, median in speed.items():
        slow, fast = tokens / max(seconds[name]), tokens / min(seconds[name])
        ratio = speed["ours"] / median
        print(f"| {name} | {median:,.0f} | {slow:,.0f}–{fast:,.0f} | {ratio:.2f} | {losses[name]:.4f} |")


if __name__ == "__main__":
    main()
