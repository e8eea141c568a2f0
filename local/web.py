"""The web application beside Airflow: started and stopped with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from local import checks
from local.airflow import Installation
from local.processes import stop_session


@contextmanager
def served(installation: Installation) -> Iterator[None]:
    """`python -m web.serve` on the root of this installation; stopped when the block ends."""
    checks.port(installation.web_port)
    installation.state.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "web.serve", "--root", installation.root, "--port", str(installation.web_port)]
    with (installation.state / "web.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--framed-by", installation.url],
            cwd=installation.home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    finally:
        stop_session(process.pid)
        process.wait()
