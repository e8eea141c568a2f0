"""What the demo's model learns, with three seeds: `make bench-demo`.

    python -m bench.demo [--recipe recipes/demo.yaml] [--root .crawl2chat/bench] [--seeds 1 2 3]

Runs the stages of `crawl_to_chat` without Airflow, once per seed, and prints a Markdown table of what was measured of
each model. Stages reuse what is published below the root, so an interrupted benchmark resumes.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.folders import HOME
from pipeline import artifact
from pipeline.recipe import load
from pipeline.stages import CORPUS, MODEL, MODELS
from pipeline.storage import Storage

RANKS = 2  # as `make run` takes on two cores or more
# Row of the table -> (name of the stage's pointer, number of its manifest).
ROWS = {
    "pretrain, loss, first ten steps": ("pretrain", "loss_first"),
    "pretrain, loss, last ten steps": ("pretrain", "loss_last"),
    "validation bits per byte": ("pretrain", "bits_per_byte"),
    "– unigram table": ("pretrain", "unigram_bits_per_byte"),
    "– bigram table": ("pretrain", "bigram_bits_per_byte"),
    "sft: says its name where asked": ("evaluation-sft", "identity_said"),
    "sft: says it elsewhere": ("evaluation-sft", "identity_wrongly_said"),
    "rl: says its name where asked": ("evaluation-rl", "identity_said"),
    "rl: says it elsewhere": ("evaluation-rl", "identity_wrongly_said"),
    "sft: arithmetic, sampled": ("evaluation-sft", "arithmetic.sampled_accuracy"),
    "rl: arithmetic, sampled": ("evaluation-rl", "arithmetic.sampled_accuracy"),
    "sft: arithmetic, greedy": ("evaluation-sft", "arithmetic.greedy_accuracy"),
    "rl: arithmetic, greedy": ("evaluation-rl", "arithmetic.greedy_accuracy"),
    "sft: calls the calculator": ("evaluation-sft", "arithmetic.tool_rate"),
    "rl: calls the calculator": ("evaluation-rl", "arithmetic.tool_rate"),
    "sft: right where it calls": ("evaluation-sft", "arithmetic.accuracy_with_tool"),
    "sft: right where it does not": ("evaluation-sft", "arithmetic.accuracy_without_tool"),
}
SECONDS = tuple(step.name for step in MODELS)


def commands(recipe: Path, root: str, run: str) -> list[list[str]]:
    """The stages' command lines, in order."""
    place = ["--recipe", str(recipe), "--root", root, "--run", run]
    ranks = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={RANKS}", "--"]
    listed = [[sys.executable, step.script, *place] for step in CORPUS]
    for step in MODEL:
        launch = [sys.executable, step.script, "--of", step.of] if step.of else [*ranks, step.script]
        listed.append([*launch, *place])
    return listed


def build(recipe: Path, root: str, seed: int) -> str:
    """Run all stages with this seed, and return the run's name. Exits the program with its output if a stage fails."""
    run = f"seed-{seed}"
    folder = Path(root) / "recipes"
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / f"{run}.yaml"
    own.write_text(load(recipe, {"seed": seed}).to_yaml())
    for command in commands(own, root, run):
        started = time.monotonic()
        done = subprocess.run(command, cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        name = " ".join(Path(part).stem for part in command if part.endswith(".py"))
        if done.returncode:
            sys.exit(f"{done.stdout[-5000:]}\n{name} with seed {seed} ended with {done.returncode}")
        print(f"seed {seed}: {name} ({time.monotonic() - started:.0f} s)", file=sys.stderr, flush=True)
    return run


def table(storage: Storage, runs: Sequence[str]) -> str:
    """A Markdown table: a row per number, a column per seed, and the median."""
    lines = ["| | " + " | ".join(runs) + " | median |", "|---|" + "---:|" * (len(runs) + 1)]

    def row(name: str, values: list[float | None], digits: int) -> None:
        known = [value for value in values if value is not None]  # a rate has none where its denominator is 0
        median = statistics.median(known) if known else None
        cells = ("–" if value is None else f"{value:.{digits}f}" for value in (*values, median))
        lines.append(f"| {name} | {' | '.join(cells)} |")

    for name, (stage, number) in ROWS.items():
        row(name, [artifact.of_run(storage, run, stage).content.numbers.get(number) for run in runs], 3)
    for stage in SECONDS:
        row(f"{stage}, seconds", [artifact.of_run(storage, run, stage).manifest.run.seconds for run in runs], 0)
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=HOME / "recipes/demo.yaml")
    parser.add_argument("--root", default=str(HOME / ".crawl2chat/bench"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    runs = [build(options.recipe, options.root, seed) for seed in options.seeds]
    print(table(Storage(options.root), runs))


if __name__ == "__main__":
    main()
