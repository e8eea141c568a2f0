"""A run: `runs/<run>/` with its `recipe.yaml` and a pointer for each stage, by which the next stage finds its input."""

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


class Pointer(Frozen):
    """`runs/<run>/<name>.json`: where the stage `name` of a run stands."""

    name: str
    stage: str
    state: str  # running | published | reused
    folder: str
    work: str
    fingerprint: str
    content_hash: str
    started: float
    seconds: float

    @property
    def progress_folder(self) -> str:
        """Folder of the stage's progress events."""
        return f"{self.work}/progress"


def run_name(text: str) -> str:
    """A folder name for a run, from any id (Airflow's hold colons and pluses)."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "run"


def pointer(storage: Storage, run: str, name: str) -> Pointer | None:
    """Where the stage `name` of `run` stands, or None where it never started."""
    path = f"runs/{run}/{name}.json"
    return Pointer.model_validate_json(storage.read(path)) if storage.exists(path) else None


def adopt(storage: Storage, source: str, run: str, names: Sequence[str]) -> None:
    """Make what the stages `names` of run `source` published the base of `run`."""
    for name in names:
        of_run(storage, source, name)
        found = pointer(storage, source, name)
        if found and source != run:
            write_pointer(storage, run, found.model_copy(update={"state": "reused"}))


def pointers(storage: Storage, name: str | None = None) -> dict[str, list[Pointer]]:
    """The pointers of every run that has any, by run; with `name`, those of that stage only."""
    found: dict[str, list[Pointer]] = {}
    for path in storage.names("runs"):
        if path.endswith(".json" if name is None else f"/{name}.json"):
            found.setdefault(path.split("/")[1], []).append(Pointer.model_validate_json(storage.read(path)))
    return found


def runs_with(storage: Storage, name: str, running: bool = False) -> list[str]:
    """The runs that have published their stage `name`, in the order in which they began it; with `running`, all."""
    found = [(one.started, run) for run, (one,) in pointers(storage, name).items() if running or one.state != "running"]
    return [run for _, run in sorted(found)]


def newest_run(storage: Storage, name: str) -> str:
    """The run that began its stage `name` last, of those that have published it."""
    if not (found := runs_with(storage, name)):
        raise ArtifactError(f"no run below {storage.root} has published {name}", f"run {name} first")
    return found[-1]


def of_run(storage: Storage, run: str, name: str, recipe: dict[str, Any] | None = None) -> Published:
    """The artifact that the stage `name` made in `run`, for the stage that reads it.

    With `recipe`, refuse one that was built from other settings than these.
    """
    found = pointer(storage, run, name)
    if found is None or found.state == "running":
        state = "did not finish" if found else "has not run"
        raise ArtifactError(f"stage {name} {state} in run {run!r} below {storage.root}", f"run {name} first")
    published = read(storage, found.folder)
    if recipe is not None and published.content.recipe != recipe:
        changed = sorted(k for k in recipe if published.content.recipe.get(k) != recipe[k])
        raise RecipeError(
            f"stage {name} of run {run!r} was built with other settings ({', '.join(changed)})",
            f"run {name} again with this recipe, or use another --run",
        )
    return published


def settled(started: Pointer, published: Published, state: str) -> Pointer:
    """The pointer once the artifact is there: `state` is published or reused."""
    return started.model_copy(
        update={
            "state": state,
            "content_hash": published.manifest.content_hash,
            "seconds": round(time.time() - started.started, 3),
        }
    )


def write_pointer(storage: Storage, run: str, to: Pointer) -> None:
    """Say where a stage of `run` stands."""
    storage.write(f"runs/{run}/{to.name}.json", to.model_dump_json(indent=1).encode())


class RunArtifacts:
    """What a run has made so far: the pointer of each stage that began, and the artifacts that are published.

    Steps come in the order of the road; those that it does not know, as of another version, follow by name.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self.storage, self.name = storage, name
        files = [file.rsplit("/", 1)[1] for file in storage.names(f"runs/{name}")]
        names = {file.removesuffix(".json") for file in files if file.endswith(".json")}
        self.pointers: dict[str, Pointer] = {}
        self.artifacts: dict[str, Published] = {}
        for step in (*(known for known in STEPS if known in names), *sorted(names - STEPS.keys())):
            if to := pointer(storage, name, step):
                self.pointers[step] = to
                if to.state != "running":
                    self.artifacts[step] = read(storage, to.folder)

    def number(self, step: str, *keys: str) -> Any:
        """A number of a step's manifest, or None; `keys` lead into nested ones."""
        value: Any = self.artifacts[step].content.numbers if step in self.artifacts else None
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def rows(self, step: str, file: str) -> list[dict[str, Any]]:
        """The lines of a JSON-lines file of a step, empty where there is none."""
        return [json.loads(line) for line in self._text(step, file).splitlines()]

    def data(self, step: str, file: str) -> dict[str, Any]:
        """A JSON file of a step, empty where there is none."""
        found = json.loads(self._text(step, file) or "{}")
        return found if isinstance(found, dict) else {}

    def _text(self, step: str, file: str) -> str:
        made = self.artifacts.get(step)
        if made is None or not any(listed.path == file for listed in made.content.files):
            return ""
        return self.storage.read(made.file(file)).decode()
