"""Where a run lies: said by the task `resolve`, passed on as command line arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.storage import Storage


def place(*keys: str) -> list[str]:
    """Templates of the command line arguments that say where a run lies: `--recipe`, `--root`, `--run`."""
    return [part for key in keys for part in (f"--{key}", f"{{{{ ti.xcom_pull(task_ids='resolve')['{key}'] }}}}")]


@dataclass(frozen=True)
class Place:
    """The rendered arguments, read back. `recipe` is empty where they do not name one."""

    root: str
    run: str
    recipe: str = ""

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Place:
        """From a command line."""
        keys = [key for key in ("root", "run", "recipe") if f"--{key}" in arguments]
        return cls(**{key: arguments[arguments.index(f"--{key}") + 1] for key in keys})

    @property
    def storage(self) -> Storage:
        """The root, opened."""
        return Storage(self.root)
