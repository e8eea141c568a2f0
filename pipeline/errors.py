"""The errors that a user can cause or mend. Each names the file, record or key, and the remedy.

Each class has an exit code of its own: retries in Airflow and in a JobSet are decided by it (docs/operate.md).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from pipeline.terminal import plain

EXIT_RESUME = 85  # "stopped in good order, start me again": a training stage that saved a checkpoint on SIGTERM


class CrawlToChatError(Exception):
    """Base of our errors: `what` happened, and the `remedy`."""

    exit_code = 1

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}\n  -> {self.remedy}"


class RecipeError(CrawlToChatError):
    """The recipe, the form or the command line asks for something that cannot be built."""

    exit_code = 2


class InputError(CrawlToChatError):
    """An input (WARC, list, conversation file) is missing or is not what it should be."""

    exit_code = 3


class ArtifactError(CrawlToChatError):
    """A published artifact is missing, changed, or does not belong to this recipe."""

    exit_code = 4


class StorageError(CrawlToChatError):
    """The root cannot be read or written."""

    exit_code = 5


class MachineError(CrawlToChatError):
    """The machine lacks something: Java, a compiler, a free port, a file of a package."""

    exit_code = 6


class StageError(CrawlToChatError):
    """A stage ran, and its result violates an invariant; nothing was published."""

    exit_code = 7


class ServerError(InputError):
    """A server refuses an input for now, or cannot be reached; it may answer later."""

    exit_code = 9


class NodeError(CrawlToChatError):
    """Another process of a launch ended, or one hangs; started again, the stage resumes from its last checkpoint."""

    exit_code = 8


class NotPublished(CrawlToChatError):
    """A stage was asked for only if it is published (`pipeline.reuse`), and it is not: it has to run."""

    exit_code = 10


class Interrupted(CrawlToChatError):
    """The stage was asked to stop and saved a checkpoint; started again, it resumes."""

    exit_code = EXIT_RESUME


def kinds() -> list[type[CrawlToChatError]]:
    """All kinds of our errors, by which exit codes are told apart."""
    found: list[type[CrawlToChatError]] = []
    for kind in CrawlToChatError.__subclasses__():
        if kind.__module__ == __name__:
            found += [kind, *kind.__subclasses__()]
    return found


def run(main: Callable[[], None]) -> NoReturn:
    """Run an entry point: our errors become two lines on stderr and an exit code, all others keep their traceback."""
    try:
        main()
    except CrawlToChatError as error:
        print(plain(f"error: {error}"), file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    sys.exit(0)
