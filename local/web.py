"""The web application beside Airflow: started and stopped with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from local import checks
from local.airflow import Installation
from local.processes import started


@contextmanager
def served(installation: Installation) -> Iterator[None]:
    """`python -m web.serve` on the root of this installation; stopped when the block ends."""
    checks.port(installation.web_port)
    command = [sys.executable, "-m", "web.serve", "--root", installation.root, "--port", str(installation.web_port)]
    with started([*command, "--framed-by", installation.url], installation.home, installation.state / "web.log"):
        yield
