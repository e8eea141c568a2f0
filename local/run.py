"""One run on this machine: checks it, starts Airflow, triggers the DAG, follows the run, stops Airflow.

A run whose stages are all published needs no Airflow: it is complete in seconds.

    python -m local.run [--recipe recipes/demo.yaml] [--root .crawl2chat/data] [--warcs 'crawl/*.warc.gz' …]
    python -m local.run --ui        # start Airflow, and keep it running

Relative paths are relative to the project folder. Exits with 1 if a task fails, with 130 if it is interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn

import httpx
import yaml
from rich.console import Console

from local import checks, follow, reuse, summary
from local.airflow import Installation, check_alone, prebuilding, standalone
from local.client import DAG, DAGS, Airflow, Task
from local.web import served
from pipeline import artifact, errors, inputs
from pipeline.artifact import RunArtifacts
from pipeline.errors import CrawlToChatError, RecipeError
from pipeline.recipe import Recipe, load
from pipeline.stages import BY_TASK
from pipeline.storage import Storage
from pipeline.terminal import plain, show

HOME = Path(__file__).resolve().parents[1]
LOG_LINES = 30  # of a failed task's log that are shown


class TaskFailed(CrawlToChatError):
    """The run, or a task of it, failed."""


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/demo.yaml", help="recipe file")
    parser.add_argument("--root", default=".crawl2chat/data", help="folder or URI below which artifacts lie")
    parser.add_argument("--warcs", nargs="+", metavar="WARC", help="files, globs, URLs or lists of WARC files")
    parser.add_argument("--crawl", help="a Common Crawl id instead of files")
    parser.add_argument("--max-warcs", type=int, help="read the first so many files only")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="values that replace the recipe's: sft.epochs=2"
    )
    parser.add_argument("--force", action="store_true", help="make again what was made already")
    parser.add_argument("--port", type=int, default=8080, help="of Airflow, on loopback; the pages use PORT + 10")
    parser.add_argument("--ui", action="store_true", help="start Airflow and keep it running, to trigger DAGs by hand")
    return parser.parse_args(arguments)


def form(arguments: argparse.Namespace, root: str) -> dict[str, Any]:
    """The DAG's trigger form, filled from the command line; options that were not set are left out."""
    filled: dict[str, Any] = {"recipe": arguments.recipe, "root": root}
    for name in ("warcs", "crawl", "max_warcs"):
        if getattr(arguments, name) is not None:
            filled[name] = getattr(arguments, name)
    if arguments.force:
        filled["force"] = True
    words = {True: "yes", False: "no"}  # the form's choices for a boolean
    return filled | {k: words[v] if isinstance(v, bool) else v for k, v in settings(arguments.set).items()}


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs as overrides of a recipe; a value is YAML. Raises `RecipeError` if one is not."""
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise RecipeError(f"--set {pair}: not KEY=VALUE", "write it as sft.epochs=2")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {pair}: no YAML value: {getattr(error, 'problem', error)}", "quote it") from error
        if overrides[key] is None:  # the DAG would build another recipe than the one that was checked
            raise RecipeError(
                f"--set {pair}: null in a trigger form means 'as in the recipe', so it replaces nothing",
                f"write {key} with the value null into a recipe file, and name it with --recipe",
            )
    return overrides


def resolved(arguments: argparse.Namespace) -> Recipe:
    """The recipe that the run will build. Raises `RecipeError` or `InputError` if it or its input is wrong."""
    overrides = settings(arguments.set)
    if arguments.warcs is not None or arguments.crawl is not None:
        overrides |= {"input.warcs": arguments.warcs or [], "input.crawl": arguments.crawl}
    if arguments.max_warcs is not None:
        overrides["input.max_warcs"] = arguments.max_warcs
    recipe = load(arguments.recipe, overrides)
    show(f"not checked: {line}" for line in inputs.check(recipe, Storage(arguments.root)))
    return recipe


def run(airflow: Airflow, arguments: argparse.Namespace, run_id: str, storage: Storage, console: Console) -> None:
    """Trigger a run, follow it, print its summary. Raises `TaskFailed`, with the end of a failed task's log."""
    name = artifact.run_name(run_id)
    airflow.fail_active(DAG)
    airflow.trigger(DAG, run_id, form(arguments, storage.root))
    console.print(f"run {run_id}", highlight=False)
    try:
        with ExitStack() as stack:
            view: follow.View
            if console.is_terminal:
                view = follow.Bars(storage, console, stack)
            else:
                view = follow.Lines(storage, lambda line: print(line, flush=True))
            state, tasks = follow.follow(airflow, storage, run_id, name, view)
    except BaseException:
        with suppress(httpx.TransportError):
            airflow.fail(DAG, run_id)  # or the next start of Airflow would continue it
        raise
    failed = [task for task in tasks if task.state == "failed"]
    if failed:
        end = plain("\n".join(f"  | {line}" for line in airflow.log(DAG, run_id, failed[0])[-LOG_LINES:]))
        console.print(f"\nthe end of the log of task {failed[0].name}:\n{end}\n", highlight=False, markup=False)
        summary.show(RunArtifacts(storage, name), console)
        raise TaskFailed(*failure(storage, name, failed[0]))
    if state != "success":  # its tasks were only skipped
        raise TaskFailed(
            f"run {run_id} ended as {state}, though none of its tasks failed: it was marked so in Airflow",
            "run again: finished stages are kept",
        )
    console.print()
    summary.show(RunArtifacts(storage, name), console)


def failure(storage: Storage, run: str, task: Task) -> tuple[str, str]:
    """What to say of a task that failed: what its stage recorded, which names the cause and the remedy."""
    pointer = artifact.pointer(storage, run, BY_TASK.get(task.name, task.name))
    if pointer is None or pointer.state != "failed":
        return f"task {task.name} failed", "its log is above; correct the cause and run again: finished stages are kept"
    log = f"; its whole log, while make ui runs: {pointer.log}" if pointer.log else ""
    return f"task {task.name} failed: {pointer.error}", f"{pointer.remedy}; run again: finished stages are kept{log}"


def stay(console: Console, url: str) -> NoReturn:
    """Print where Airflow is, and wait for Ctrl-C."""
    console.print(f"{url}/dags/{DAG}  (Ctrl-C stops Airflow)", highlight=False)
    while True:
        signal.pause()


def main() -> None:
    arguments = options()
    os.chdir(HOME)
    console = Console()
    checks.java()
    storage = Storage(arguments.root)
    recipe = None if arguments.ui else resolved(arguments)
    storage.check_writable()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    installation = Installation(HOME, storage.root, arguments.port)
    run_id = f"{recipe.name}-{time.strftime('%Y%m%dT%H%M%S')}" if recipe else ""
    try:
        if recipe and not arguments.force and reuse.whole(recipe, storage, artifact.run_name(run_id)):
            console.print(f"run {run_id}", highlight=False)
            summary.show(RunArtifacts(storage, artifact.run_name(run_id)), console)
            return
        check_alone(installation)  # before the ports: its own are taken, and it is the reason
        checks.port(installation.port)  # the one that was named, before that of the pages
        dags = DAGS if arguments.ui else (DAG,)
        with (
            prebuilding(HOME),
            served(installation),
            standalone(installation, lambda line: print(line, flush=True), dags) as airflow,
        ):
            print(f"pages of all runs: {installation.web_url}", flush=True)
            if recipe is None:
                stay(console, installation.url)
            run(airflow, arguments, run_id, storage, console)
    except KeyboardInterrupt:
        print("stopped; the next run continues where this one stopped", file=sys.stderr, flush=True)
        sys.exit(130)


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    errors.run(main)
