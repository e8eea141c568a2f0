"""A run: `runs/<run>/` with its `recipe.yaml` and a pointer for each stage, by which the next stage finds its input.

A stage that failed says in its pointer what happened and what to do, for whoever looks at the run.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from typing import Any

from pipeline.artifact.artifact import Frozen, Published, read
from pipeline.errors import ArtifactError, RecipeError
from pipeline.stages import STEPS
from pipeline.storage import Storage

PLAN = "plan.json"  # beside the pointers: what the run is to do (`pipeline.artifact.state`)
MAX_ERROR = 2000  # characters of an error that a pointer keeps: some hold a whole stack, which is in the log
_IDENTITY = ("folder", "work", "fingerprint", "content_hash")


class Pointer(Frozen):
    """`runs/<run>/<name>.json`: the state of the stage `name` in a run, and the artifact that it makes."""

    name: str
    stage: str
    state: str  # running | published | reused | failed
    folder: str
    work: str
    fingerprint: str
    content_hash: str
    started: float
    seconds: float
    # Of a stage that failed: what happened, the remedy, the address of its log, and whether Airflow starts it again by
    # itself. Pointers of older versions lack these.
    error: str = ""
    remedy: str = ""
    log: str = ""
    will_retry: bool = False

    @property
    def finished(self) -> bool:
        """Whether the stage has made its artifact, in this run or in an earlier one."""
        return self.state in ("published", "reused")

    @property
    def ended(self) -> float:
        """When it ended (Unix seconds); of a running stage, when it started."""
        return self.started + self.seconds

    @property
    def progress_folder(self) -> str:
        """Folder of the stage's progress events."""
        return f"{self.work}/progress"


def run_name(text: str) -> str:
    """A folder name for a run, from any id (Airflow's contain colons and pluses)."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "run"


def pointer(storage: Storage, run: str, name: str) -> Pointer | None:
    """The pointer of the stage `name` of `run`, or None where it never started."""
    path = f"runs/{run}/{name}.json"
    return Pointer.model_validate_json(storage.read(path)) if storage.exists(path) else None


def adopt(storage: Storage, source: str, run: str, names: Sequence[str]) -> None:
    """Let `run` continue from what the stages `names` of run `source` published: it gets their pointers.

    Raises `ArtifactError` where one of them has published nothing.
    """
    for name in names:
        of_run(storage, source, name)
        theirs = pointer(storage, source, name)
        if theirs and source != run:
            write_pointer(storage, run, theirs.model_copy(update={"state": "reused"}))


def pointers(storage: Storage, name: str | None = None) -> dict[str, list[Pointer]]:
    """The pointers of every run, by run: none yet of one that has just begun. With `name`, those of that stage only."""
    by_run: dict[str, list[Pointer]] = {}
    for path in storage.names("runs"):
        if path.endswith(f"/{PLAN}"):
            if name is None:
                by_run.setdefault(path.split("/")[1], [])
        elif path.endswith(".json" if name is None else f"/{name}.json"):
            by_run.setdefault(path.split("/")[1], []).append(Pointer.model_validate_json(storage.read(path)))
    return by_run


def pointers_of(storage: Storage, run: str) -> dict[str, Pointer]:
    """The pointers of a run by name, in the order of `pipeline.stages`; unknown ones, of another version, follow."""
    files = [file.rsplit("/", 1)[1] for file in storage.names(f"runs/{run}")]
    names = {file.removesuffix(".json") for file in files if file.endswith(".json") and file != PLAN}
    ordered = (*(known for known in STEPS if known in names), *sorted(names - STEPS.keys()))
    return {name: found for name in ordered if (found := pointer(storage, run, name))}


def runs_with(storage: Storage, name: str, running: bool = False) -> list[str]:
    """The runs that have published their stage `name`, in the order they began it; with `running`, unfinished too."""
    by_run = {run: stage for run, (stage,) in pointers(storage, name).items() if stage.finished or running}
    return sorted(by_run, key=lambda run: (by_run[run].started, run))


def newest_run(storage: Storage, name: str) -> str:
    """Of the runs that have published their stage `name`, the one that began it last; `ArtifactError` for none."""
    if not (runs := runs_with(storage, name)):
        raise ArtifactError(f"no run below {storage.root} has published {name}", f"run {name} first")
    return runs[-1]


def of_run(storage: Storage, run: str, name: str, recipe: dict[str, Any] | None = None) -> Published:
    """The artifact that the stage `name` made in `run`, for the stage that reads it.

    Raises `ArtifactError` where it has not finished; with `recipe`, `RecipeError` where it was built from other
    settings than these.
    """
    to = pointer(storage, run, name)
    if to is None or not to.finished:
        state = ("failed" if to.state == "failed" else "did not finish") if to else "has not run"
        raise ArtifactError(f"stage {name} {state} in run {run!r} below {storage.root}", f"run {name} first")
    published = read(storage, to.folder)
    if recipe is not None and published.content.recipe != recipe:
        changed = sorted(key for key in recipe if published.content.recipe.get(key) != recipe[key])
        raise RecipeError(
            f"stage {name} of run {run!r} was built with other settings ({', '.join(changed)})",
            f"run {name} again with this recipe, or use another --run",
        )
    return published


def settled(started: Pointer, published: Published, state: str) -> Pointer:
    """The pointer of a finished stage: `state` is published or reused."""
    return started.model_copy(
        update={
            "state": state,
            "content_hash": published.manifest.content_hash,
            "seconds": round(time.time() - started.started, 3),
        }
    )


def fail(storage: Storage, run: str, name: str, error: str, remedy: str) -> Pointer:
    """Record that the stage `name` of `run` failed; returns its pointer.

    A stage that failed before it knew what it would make has no folder. One that had begun keeps it, so that
    `pipeline.gc` keeps what it has committed.
    """
    now, before = time.time(), pointer(storage, run, name)
    empty = {"stage": STEPS[name].stage if name in STEPS else name} | dict.fromkeys(_IDENTITY, "")
    known = before.model_dump(include={"stage", *_IDENTITY}) if before else empty
    began = before.started if before and before.state == "running" else now
    to = Pointer(
        **known,
        name=name,
        state="failed",
        started=began,
        seconds=round(now - began, 3),
        error=error[:MAX_ERROR],
        remedy=remedy[:MAX_ERROR],
    )
    write_pointer(storage, run, to)
    return to


def write_pointer(storage: Storage, run: str, to: Pointer) -> None:
    """Write the pointer of a stage of `run`."""
    storage.write(f"runs/{run}/{to.name}.json", to.model_dump_json(indent=1).encode())


class RunArtifacts:
    """What a run has made so far: the pointer of each stage that began, and the artifacts that are published.

    Steps are in the order of `pipeline.stages`; unknown ones, of another version, follow by name.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self.storage, self.name = storage, name
        self.pointers = pointers_of(storage, name)
        self.artifacts = {step: read(storage, to.folder) for step, to in self.pointers.items() if to.finished}

    def number(self, step: str, *keys: str) -> Any:
        """A value among the numbers of a step's manifest, or None; further `keys` are those of nested objects."""
        value: Any = self.artifacts[step].content.numbers if step in self.artifacts else None
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def measured(self, step: str, key: str) -> float | None:
        """A number of a step's manifest, or None where it has none of that name."""
        value = self.number(step, key)
        return float(value) if isinstance(value, (int, float)) else None

    def rows(self, step: str, file: str) -> list[dict[str, Any]]:
        """The lines of a JSON-lines file of a step, empty where there is none."""
        return [json.loads(line) for line in self._text(step, file).splitlines()]

    def data(self, step: str, file: str) -> dict[str, Any]:
        """A JSON file of a step, empty where there is none."""
        data = json.loads(self._text(step, file) or "{}")
        return data if isinstance(data, dict) else {}

    def _text(self, step: str, file: str) -> str:
        published = self.artifacts.get(step)
        if published is None or not any(listed.path == file for listed in published.content.files):
            return ""
        return self.storage.read(published.file(file)).decode()
