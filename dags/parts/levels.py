"""The level at which a line of a stage's output stands in the task's log, so that errors are found and filtered there.

A stage's process knows no levels: it prints `error: …` with the remedy after `->` (`pipeline.errors`), `warning: …`,
Spark's lines, or a traceback. Airflow shows errors and warnings in colour, and its page filters by level.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

_SPARK = re.compile(r"\d\d/\d\d/\d\d \d\d:\d\d:\d\d (WARN|ERROR|FATAL) ")
_TRACEBACK = "Traceback (most recent call last):"
_RAISED = re.compile(r"[A-Za-z_][\w.]*(: |:?$)")  # the last line of a traceback; its other lines are paths and code
_LONGEST = 200  # lines of an error: one whose end was lost does not colour all that follows


class Levels:
    """Finds the level of each line, in their order. The spark-submit hook strips lines, so indentation says nothing."""

    def __init__(self) -> None:
        self._ends: Callable[[str], bool] | None = None  # of the error that the last lines belong to
        self._left = 0

    def __call__(self, line: str) -> int:
        """The level of the next line."""
        text = line.strip()
        if self._ends and self._left:
            self._left -= 1
            if self._ends(text):
                self._ends = None
            return logging.ERROR
        if text.startswith("error: "):
            self._begin(lambda following: following.startswith("-> "))
            return logging.ERROR
        if text == _TRACEBACK:
            self._begin(_raised)
            return logging.ERROR
        if spark := _SPARK.match(text):
            return logging.WARNING if spark[1] == "WARN" else logging.ERROR
        return logging.WARNING if text.startswith("warning: ") else logging.INFO

    def _begin(self, ends: Callable[[str], bool]) -> None:
        self._ends, self._left = ends, _LONGEST


def _raised(line: str) -> bool:
    return bool(_RAISED.match(line)) and not line.startswith("File ")


def logger(log: Any) -> Callable[[str], None]:
    """A function that logs a line of a stage's output at its level."""
    levels = Levels()
    return lambda line: log.log(levels(line), "%s", line)


class HookLog:
    """Stands for the log of a hook that logs a stage's lines by `info`; all else is passed on."""

    def __init__(self, log: Any) -> None:
        self._log, self._levels = log, Levels()

    def info(self, message: str, *arguments: Any) -> None:
        """Log at the level of the line. Without arguments it is a stage's, in which `%` means itself."""
        text = message % arguments if arguments else message
        self._log.log(self._levels(text), "%s", text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)
