"""Where a run is: the task `resolve` returns it, the other tasks pass it on as command line arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.storage import Storage


def place(*keys: str) -> list[str]:
    """The command line arguments `--recipe`, `--root`, `--run`, with templates that read the result of `resolve`."""
    return [part for key in keys for part in (f"--{key}", f"{{{{ ti.xcom_pull(task_ids='resolve')['{key}'] }}}}")]


@dataclass(frozen=True)
class Place:
    """The rendered arguments, parsed. `recipe` is empty if they do not contain one."""

    root: str
    run: str
    recipe: str = ""

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Place:
        """Parse the arguments of a task."""
        keys = [key for key in ("root", "run", "recipe") if f"--{key}" in arguments]
        return cls(**{key: arguments[arguments.index(f"--{key}") + 1] for key in keys})

    @property
    def storage(self) -> Storage:
        """The root, opened."""
        return Storage(self.root)
