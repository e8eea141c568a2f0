"""What a run made, for the terminal: its stages, its numbers, and the assistant talking. Absent numbers stay absent."""

from __future__ import annotations

import json
import re
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline import artifact
from pipeline.artifact import Pointer, Published
from pipeline.stages import STEPS
from pipeline.storage import Storage

CHATS = 3
_CALL = re.compile(r"<\|tool\|>(.*?)<\|/tool\|><\|output\|>(.*?)<\|/output\|>")  # of the calculator


class Made:
    """The published artifacts of a run, by pointer name."""

    def __init__(self, storage: Storage, run: str) -> None:
        self.storage = storage
        self.pointers: dict[str, Pointer] = {}
        self.artifacts: dict[str, Published] = {}
        for name in STEPS:
            pointer = artifact.pointer(storage, run, name)
            if pointer and pointer.state != "running":
                self.pointers[name] = pointer
                self.artifacts[name] = artifact.read(storage, pointer.folder)

    def number(self, stage: str, name: str) -> float | None:
        """A number of a stage's manifest, None where it has none of that name."""
        value = self.artifacts[stage].content.numbers.get(name) if stage in self.artifacts else None
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def nothing_new(self) -> bool:
        """True where every stage but the report, which bears the run's name, was made by an earlier run."""
        states = [pointer.state for name, pointer in self.pointers.items() if name != "report"]
        return bool(states) and all(state == "reused" for state in states)

    def file(self, stage: str, ending: str) -> str | None:
        """Name, for the storage, of a stage's file."""
        files = self.artifacts[stage].files(ending) if stage in self.artifacts else []
        return files[0] if files else None


def stages(made: Made) -> Table:
    """A row a stage. Seconds and CPU seconds are those of this run; of a stage that was reused, the look-up's."""
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "in", "out", "seconds", "CPU seconds", ""):
        table.add_column(heading, justify="left" if heading in ("stage", "") else "right")
    for name, step in STEPS.items():
        if name not in made.artifacts:
            continue
        pointer, found = made.pointers[name], made.artifacts[name]
        counts, reused = found.content.counts, pointer.state == "reused"
        table.add_row(
            step.task.rpartition(".")[2],
            f"{counts.in_:,}" if counts else "",
            f"{counts.kept:,}" if counts else "",
            f"{pointer.seconds:.1f}",
            "" if reused else f"{found.manifest.run.cpu_seconds:.1f}",
            "already made" if reused else "made",
        )
    return table


def learned(made: Made) -> list[str]:
    """A line for each number that says whether the model learned, of those that are there."""
    lines = []
    first, last = made.number("pretrain", "loss_first"), made.number("pretrain", "loss_last")
    if first is not None and last is not None:
        lines.append(f"loss {first:.2f} -> {last:.2f} (mean of the first and of the last ten steps)")
    bits = made.number("pretrain", "bits_per_byte")
    tables = {name: made.number("pretrain", f"{name}_bits_per_byte") for name in ("unigram", "bigram")}
    beside = ", ".join(f"{name} table {value:.3f}" for name, value in tables.items() if value is not None)
    if bits is not None:
        lines.append(f"held-out text: {bits:.3f} bits a byte" + (f" ({beside})" if beside else ""))
    for how in ("sampled", "greedy"):
        before = made.number("evaluation-sft", f"{how}_accuracy")
        after = made.number("evaluation-rl", f"{how}_accuracy")
        if before is not None and after is not None:
            lines.append(f"unseen arithmetic, {how}: {before:.1%} before reinforcement learning, {after:.1%} after")
    return lines


def chats(made: Made) -> list[tuple[str, str]]:
    """(user, assistant) of the first conversations of the last model that was evaluated."""
    for stage in ("evaluation-rl", "evaluation-sft"):
        name = made.file(stage, "results.json")
        if name:
            results: dict[str, Any] = json.loads(made.storage.read(name))
            rows = results.get("chats", [])[:CHATS]
            return [(row["user"], _CALL.sub(r"[\1 = \2] ", row["assistant"])) for row in rows]
    return []


def show(made: Made, console: Console) -> None:
    """Print all of it."""
    console.print(stages(made))
    console.print()
    for line in learned(made):
        console.print(line, highlight=False)
    for user, assistant in chats(made):
        console.print(f"[bold]user[/bold]      {escape(user)}", highlight=False)
        console.print(f"[bold]assistant[/bold] {escape(assistant.strip())}", highlight=False)
    if made.nothing_new:
        console.print("every stage was already made; nothing was done again", highlight=False)
    report = made.file("report", "report.html")
    if report:
        console.print(f"report: {made.storage.path(report)}", highlight=False, soft_wrap=True)
