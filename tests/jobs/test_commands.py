"""The commands that look at what was made start as they are shown."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.jobs.conftest import REPOSITORY


@pytest.mark.parametrize("name", ["explain", "inspect", "holds"])
def test_a_command_says_how_it_is_called(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"jobs.commands.{name}", "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {name}.py")
    assert f"python -m jobs.commands.{name} " in done.stdout
