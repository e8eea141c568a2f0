"""Which commit of the code runs here."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

COMMIT = "CRAWL2CHAT_COMMIT"
PROJECT = Path(__file__).resolve().parents[1]


@functools.cache  # a process runs the code that it has loaded
def commit() -> str:
    """The commit, 12 hex digits, with a `+` where files of it were changed; empty where nobody knows.

    Images hold no repository: they have it in the environment.
    """
    if named := os.environ.get(COMMIT):
        return named
    if not (PROJECT / ".git").exists():  # an installed wheel may lie below a repository that is not ours
        return ""
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git here, or a repository of another user
        return ""
