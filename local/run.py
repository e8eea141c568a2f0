"""The whole road on this machine, followed in the terminal: `make run`, or

    python -m local.run --recipe recipes/demo.yaml --root .crawl2chat/data [--warcs …] [--crawl …] [--max-warcs …]
    python -m local.run --ui        starts Airflow and stays

Starts Airflow, triggers `crawl_to_chat`, shows a bar a stage, and stops what it started.
"""

from __future__ import annotations

import argparse
import glob
import json
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from local.airflow import HOME, Standalone, check_machine
from pipeline import artifact, errors, progress, recipe
from pipeline.errors import InputError, StageError
from pipeline.storage import Storage

DAG = "crawl_to_chat"
STAGES = (
    *("extract", "filter", "deduplicate", "redact", "tokenizer", "shard", "pretrain", "evaluation-pretrain"),
    *("sft", "evaluation-sft", "rl", "evaluation-rl", "report"),
)
_POLL_SECONDS = 1.0
_LOG_LINES = 30


def conf(options: argparse.Namespace) -> dict[str, Any]:
    """The DAG run's parameters for a command line."""
    given = {
        "recipe": options.recipe,
        "root": str(Path(options.root).resolve()) if "://" not in options.root else options.root,
        "warcs": options.warcs or None,
        "crawl": options.crawl,
        "max_warcs": options.max_warcs,
        "force": options.force,
    }
    return {key: value for key, value in given.items() if value is not None}


def check_input(options: argparse.Namespace) -> None:
    """Refuse what cannot work before Airflow starts: the recipe, the WARCs, the root."""
    overrides: dict[str, Any] = {}
    if options.warcs:
        overrides = {"input.warcs": options.warcs, "input.crawl": None}
    elif options.crawl:
        overrides = {"input.warcs": [], "input.crawl": options.crawl}
    loaded = recipe.load(options.recipe, overrides)
    for pattern in loaded.input.warcs:
        if "://" not in pattern and not glob.glob(pattern, recursive=True):
            raise InputError(f"no WARC file matches {pattern!r}", f"check the path (working folder: {Path.cwd()})")
    Storage(options.root).check_writable()


class Follower:
    """Shows where a run stands, from the pointers and progress events its stages write."""

    def __init__(self, storage: Storage, run: str, console: Console) -> None:
        self._storage, self._run, self._console = storage, run, console
        self._bars: dict[str, TaskID] = {}
        self._said: set[str] = set()
        self._live = Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )

    def __enter__(self) -> Follower:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def look(self) -> None:
        """Bring the bars up to date."""
        for name in STAGES:
            pointer = artifact.pointer(self._storage, self._run, name)
            if pointer is None or name in self._said:
                continue
            if name not in self._bars:
                self._bars[name] = self._live.add_task(name, total=None, note="")
            bar = self._bars[name]
            if pointer.state == "running":
                last = None
                for last in progress.events(self._storage, f"{pointer.work}/progress"):  # noqa: B007
                    pass
                if last is not None:
                    self._live.update(bar, completed=last.done, total=last.total, note=note(last))
                continue
            self._said.add(name)
            state = "made before" if pointer.state == "reused" else f"{pointer.seconds:.0f} s"
            total = self._live.tasks[bar].total or 1
            self._live.update(bar, completed=total, total=total, note=f"done ({state})")
            self._live.stop_task(bar)
            if not self._console.is_terminal:
                self._console.print(f"{name:<20} done ({state})")


def note(event: progress.Event) -> str:
    """The most telling numbers of an event."""
    shown = [f"{key} {value:.3g}" for key, value in event.numbers.items() if isinstance(value, (int, float))]
    return f"{event.unit} {' '.join(shown[:3])}"


def follow(airflow: Standalone, run_id: str, follower: Follower) -> str:
    """Wait for the end of the run; returns its state."""
    while True:
        state = str(airflow.call("GET", f"/dags/{DAG}/dagRuns/{run_id}")["state"])
        follower.look()
        if state in ("success", "failed"):
            return state
        time.sleep(_POLL_SECONDS)


def failure(airflow: Standalone, run_id: str) -> StageError:
    """What failed, with the last lines of its log."""
    path = f"/dags/{DAG}/dagRuns/{run_id}/taskInstances"
    failed = [task for task in airflow.call("GET", path)["task_instances"] if task["state"] == "failed"]
    task = failed[0]
    logs = airflow.call("GET", f"{path}/{task['task_id']}/logs/{task['try_number']}", params={"full_content": "true"})
    lines = [entry["event"] if isinstance(entry, dict) else str(entry) for entry in logs["content"]]
    tail = "\n".join(f"  | {line}" for line in lines[-_LOG_LINES:])
    return StageError(f"task {task['task_id']} failed; the end of its log:\n{tail}", "mend the cause and run again")


def summary(storage: Storage, run: str, console: Console) -> None:
    """The table of the stages and what the model learned, all of it from manifests."""
    table = Table(title="stages", show_lines=False)
    for column in ("stage", "in", "out", "seconds", "CPU s", ""):
        table.add_column(column, justify="left" if column in ("stage", "") else "right")
    made: dict[str, artifact.Published] = {}
    reused = []
    for name in STAGES:
        pointer = artifact.pointer(storage, run, name)
        if pointer is None:
            continue
        made[name] = artifact.of_run(storage, run, name)
        content, spent = made[name].content, made[name].manifest.run
        came, went = (content.counts.in_, content.counts.kept) if content.counts else ("", outcome(content))
        if pointer.state == "reused":
            reused.append(name)
        state = "made before" if pointer.state == "reused" else ""
        table.add_row(name, str(came), str(went), f"{spent.seconds:.0f}", f"{spent.cpu_seconds:.0f}", state)
    console.print(table)
    if len(reused) == len(made):
        console.print("Every stage was already made; nothing was done again.")
    learned(made, console)
    report = made["report"].files(".html")[0]
    console.print(f"report: {storage.path(report)}", soft_wrap=True)


def outcome(content: artifact.Content) -> str:
    """What a stage without counts made."""
    for key, unit in (("vocabulary", "ids"), ("parameters", "parameters")):
        if key in content.numbers:
            return f"{content.numbers[key]:,} {unit}"
    return f"{len(content.files)} files"


def learned(made: dict[str, artifact.Published], console: Console) -> None:
    """Loss before and after, accuracy before and after RL, and three lines of talk."""
    base = made["pretrain"].content.numbers
    console.print(
        f"loss {base['loss_first']:.2f} -> {base['loss_last']:.2f}; held-out bits per byte "
        f"{base['bits_per_byte']:.3f} (unigram {base['unigram_bits_per_byte']:.3f}, "
        f"bigram {base['bigram_bits_per_byte']:.3f})"
    )
    before, after = made["evaluation-sft"].content.numbers, made["evaluation-rl"].content.numbers
    console.print(
        f"arithmetic, sampled: {before['sampled_accuracy']:.1%} -> {after['sampled_accuracy']:.1%}; "
        f"greedy {before['greedy_accuracy']:.1%} -> {after['greedy_accuracy']:.1%}; "
        f"calls the calculator {before['tool_rate']:.1%} -> {after['tool_rate']:.1%}"
    )
    evaluated = made["evaluation-rl"]
    results = json.loads(evaluated.storage.read(evaluated.file("results.json")))
    for chat in results["chats"][:3]:
        console.print(f"  [bold]user[/bold]       {chat['user']}\n  [bold]crawl2chat[/bold] {chat['assistant']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/demo.yaml")
    parser.add_argument("--root", default=".crawl2chat/data")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--warcs", nargs="+", help="WARC files, globs, URLs or lists instead of the recipe's")
    parser.add_argument("--crawl", help="a Common Crawl id")
    parser.add_argument("--max-warcs", type=int, help="read the first so many files only")
    parser.add_argument("--force", action="store_true", help="make again what is made already")
    parser.add_argument("--ui", action="store_true", help="start Airflow and stay")
    options = parser.parse_args()
    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that Airflow is stopped with us
    check_machine(options.port)
    root = str(Path(options.root).resolve()) if "://" not in options.root else options.root
    if options.ui:
        with Standalone(options.port, root) as airflow:
            console.print(f"Airflow is up: {airflow.url}/dags/{DAG}  (Ctrl-C stops it)")
            try:
                signal.pause()
            except KeyboardInterrupt:
                console.print("stopping")
        return
    check_input(options)
    began = time.monotonic()
    console.print(f"starting Airflow in {HOME / '.crawl2chat' / 'airflow'}")
    with Standalone(options.port, root) as airflow:
        console.print(f"Airflow is up at {airflow.url} after {time.monotonic() - began:.0f} s")
        run_id = f"run-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf(options)}
        airflow.call("POST", f"/dags/{DAG}/dagRuns", json=body)
        storage, run = Storage(root), artifact.run_name(run_id)
        with Follower(storage, run, console) as follower:
            state = follow(airflow, run_id, follower)
            follower.look()
        if state != "success":
            raise failure(airflow, run_id)
    summary(storage, run, console)
    console.print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    errors.run(main)
