"""The command line that all stages share, and what it leads to: a recipe, a root, a run, the artifacts to read."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline import artifact
from pipeline.artifact import Building, Identity, Published, Stage
from pipeline.errors import CrawlToChatError, InputError, Interrupted
from pipeline.recipe import Recipe, load
from pipeline.stages import CORPUS, SECTIONS
from pipeline.storage import Storage

ROOT_HELP = "folder or s3:// URI below which artifacts lie"


@dataclass(frozen=True)
class Job:
    """What the command line of a stage says.

    `input`: folders of artifacts to read instead of the run's. `published_only`: a stage that is not published raises
    `NotPublished` where it would start.
    """

    recipe: Recipe
    storage: Storage
    run: str
    input: list[str]
    force: bool
    published_only: bool = field(default=False, kw_only=True)


def parser(description: str | None, reads: str = "artifacts below the root, not the run's") -> argparse.ArgumentParser:
    """A parser with `--recipe --root --run --input --force`. `reads`: what `--input` names."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--recipe", required=True, help="recipe file")
    add_root(options)
    options.add_argument("--run", help="name of the run; by default the recipe's name")
    options.add_argument("--input", nargs="+", default=[], help=reads)
    options.add_argument("--force", action="store_true", help="make again what is published already")
    return options


def add_root(to: argparse.ArgumentParser) -> None:
    """Add `--root`, for commands that take no recipe."""
    to.add_argument("--root", required=True, help=ROOT_HELP)


def job(options: argparse.Namespace, warcs: bool = False) -> Job:
    """The job of a parsed command line. With `warcs`, `--input` names WARC files, which replace the recipe's."""
    overrides = None
    if warcs and options.input:  # all of them: a limit of the recipe is meant for its own files
        overrides = {"input.warcs": options.input, "input.crawl": None, "input.max_warcs": None}
    recipe = load(options.recipe, overrides)
    run = artifact.run_name(options.run or recipe.name)
    return Job(recipe, Storage(options.root), run, [] if warcs else options.input, options.force)


def parse(description: str | None, arguments: Sequence[str] | None = None) -> Job:
    """The job of a stage that reads artifacts and has no options of its own."""
    return job(parser(description).parse_args(arguments))


@contextmanager
def recording(job: Job, name: str) -> Iterator[None]:
    """Record an error that ends the stage `name`, for the pages, the terminal and the report; then raise it.

    Several ranks may raise: the first one knows the cause, the others that they lost it. What has no message, such as
    a kill, the operator records (`dags.parts.failures`).
    """
    began = time.time()
    try:
        yield
    except Interrupted:  # it saved a checkpoint, and is started again
        raise
    except Exception as error:
        try:
            before = artifact.pointer(job.storage, job.run, name)
            if before is None or before.state != "failed" or before.ended < began:
                artifact.fail(job.storage, job.run, name, *described(error))
        except (CrawlToChatError, OSError) as unwritable:
            print(f"the failure could not be recorded: {unwritable}", file=sys.stderr, flush=True)
        raise


def described(error: BaseException) -> tuple[str, str]:
    """What happened, and the remedy: of an error of ours, its own two lines."""
    if isinstance(error, CrawlToChatError):
        return error.what, error.remedy
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    what = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return what, "this is no error that the stage foresees: read its log, which has the stack; then run it again"


def settings(recipe: Recipe, stage: str) -> dict[str, Any]:
    """All of the recipe that decides what a stage makes, beside `seed`: as plain data, for its fingerprint.

    A stage of the corpus has its own section; a stage of the model has its sections by name. The tokenizer's files
    also state the model's context length.
    """
    if stage == "tokenizer":
        return recipe.section(stage) | {"model.window": recipe.model.window}
    if stage in {step.stage for step in CORPUS}:
        return recipe.section(stage)
    return {name: recipe.section(name) for name in SECTIONS[stage]}


def upstream(job: Job, stage: str) -> Published:
    """The artifact of an earlier stage: the one that `--input` names, or what this run built with this recipe."""
    for folder in job.input:
        named = artifact.read(job.storage, folder)
        if named.content.stage == stage:
            return named
    return artifact.of_run(job.storage, job.run, stage, settings(job.recipe, stage))


def source(job: Job, stage: str) -> Published:
    """The artifact to work on: whatever `--input` names, of any stage; else what `stage` of this run built."""
    return artifact.read(job.storage, job.input[0]) if job.input else upstream(job, stage)


def start(job: Job, identity: Identity, name: str | None = None) -> Published | Building:
    """Start a stage of the job's run, as `artifact.start`. All stages come by here before they spend anything."""
    return artifact.start(job.storage, job.run, identity, name=name, force=job.force, published_only=job.published_only)


def open_stage(
    job: Job,
    stage: Stage,
    sources: Sequence[Published],
    assets: dict[str, str] | None = None,
    name: str | None = None,
) -> Published | Building:
    """Start a stage that reads artifacts, as `start`. Refuses an `--input` that it does not read.

    `name`: of its pointer, where a stage runs more than once in a run.
    """
    for folder in job.input:
        if folder not in {source.folder for source in sources}:
            reads = ", ".join(source.content.stage for source in sources)
            raise InputError(f"{stage.name} does not read {folder}", f"name artifacts of {reads}")
    inputs = [source.as_input() for source in sources]
    section, seed = settings(job.recipe, stage.name), job.recipe.seed
    return start(job, Identity(stage, section, seed, inputs, assets=assets or {}), name)
