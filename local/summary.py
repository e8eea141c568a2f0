"""What a run made, for the terminal: its stages, its numbers, and the assistant talking. Absent numbers stay absent."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.artifact import RunArtifacts
from pipeline.numbers import asked_tasks
from pipeline.stages import AFTER_RL, BEFORE_RL, MODELS, REPORT, STEPS
from pipeline.terminal import plain

CHATS = 3
DEFAULT_ROOT = Path(__file__).resolve().parents[1] / ".crawl2chat/data"  # the Makefile's


def stages(run: RunArtifacts) -> Table:
    """A row per stage. Seconds and CPU seconds are those of this run; of a stage that was reused, the look-up's."""
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "in", "out", "seconds", "CPU seconds", ""):
        table.add_column(heading, justify="left" if heading in ("stage", "") else "right")
    for name, pointer in run.pointers.items():
        task = STEPS[name].task.rpartition(".")[2] if name in STEPS else name
        if name not in run.artifacts:
            state = "failed" if pointer.state == "failed" else "not finished"
            table.add_row(task, "", "", f"{pointer.seconds:.1f}" if pointer.state == "failed" else "", "", state)
            continue
        published = run.artifacts[name]
        counts = published.content.counts
        reused = pointer.state == "reused"
        table.add_row(
            task,
            f"{counts.in_:,}" if counts else "",
            f"{counts.kept:,}" if counts else "",
            f"{pointer.seconds:.1f}",
            "" if reused else f"{published.manifest.run.cpu_seconds:.1f}",
            "already made" if reused else "made",
        )
    return table


def learned(run: RunArtifacts) -> list[str]:
    """A line for each number that says whether the model learned, of those that are there."""
    lines = []
    first, last = run.measured("pretrain", "loss_first"), run.measured("pretrain", "loss_last")
    if first is not None and last is not None:
        lines.append(f"loss {first:.2f} -> {last:.2f} (mean of the first and of the last ten steps)")
    bits = run.measured("pretrain", "bits_per_byte")
    tables = {name: run.measured("pretrain", f"{name}_bits_per_byte") for name in ("unigram", "bigram")}
    beside = ", ".join(f"{name} table {value:.3f}" for name, value in tables.items() if value is not None)
    if bits is not None:
        lines.append(f"held-out text: {bits:.3f} bits per byte" + (f" ({beside})" if beside else ""))
    for task in asked_tasks(run.number(AFTER_RL.name)):
        for how in ("sampled", "greedy"):
            before = run.measured(BEFORE_RL.name, f"{task}.{how}_accuracy")
            after = run.measured(AFTER_RL.name, f"{task}.{how}_accuracy")
            if before is not None and after is not None:
                change = f"{before:.1%} before reinforcement learning, {after:.1%} after"
                lines.append(f"{task}, held-out questions, {how}: {change}")
    return lines


def chats(run: RunArtifacts) -> list[tuple[str, str]]:
    """(user, assistant) of the first conversations of the last model that was evaluated."""
    for step in (AFTER_RL, BEFORE_RL):
        if rows := run.data(step.name, "results.json").get("chats", []):
            return [(row["user"], row.get("readable", row["assistant"])) for row in rows[:CHATS]]
    return []


def nothing_new(run: RunArtifacts) -> bool:
    """Whether every stage but the report, which bears the run's name, was made by an earlier run."""
    states = [pointer.state for name, pointer in run.pointers.items() if name != REPORT.name]
    return bool(states) and all(state == "reused" for state in states)


def next_commands(run: RunArtifacts) -> list[tuple[str, str]]:
    """(command, what for): what somebody types next, to be copied as it stands."""
    root = "" if run.storage.root == str(DEFAULT_ROOT) else f" ROOT={shlex.quote(run.storage.root)}"
    assistants = [step.name for step in MODELS[1:] if step.name in run.artifacts]  # the base model does not answer
    commands = [(f"make chat{root}", "talk to it")] if assistants else []
    if "filter" in run.artifacts:
        commands.append((f"make inspect STAGE=filter{root}", "pages that the filter dropped, and why"))
    return commands


def show(run: RunArtifacts, console: Console) -> None:
    """Print all of it."""
    console.print(stages(run))
    console.print()
    for line in learned(run):
        console.print(line, highlight=False)
    for user, assistant in chats(run):
        console.print(f"[bold]user[/bold]      {escape(plain(user))}", highlight=False)
        console.print(f"[bold]assistant[/bold] {escape(plain(assistant).strip())}", highlight=False)
    if nothing_new(run):
        console.print("every stage was already made; nothing was done again", highlight=False)
    if report := run.artifacts.get(REPORT.name):
        for page in report.files(".html"):
            console.print(f"report: {report.storage.path(page)}", highlight=False, soft_wrap=True)
    commands = next_commands(run)
    width = max((len(command) for command, _ in commands), default=0)
    for command, purpose in commands:
        console.print(f"next:   {command:<{width}}  # {purpose}", highlight=False, soft_wrap=True, markup=False)
