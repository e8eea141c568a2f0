"""Known vulnerabilities of what requirements.lock and docker/cluster.lock pin, as pip-audit finds them.

    make audit
    make audit ARGS=--if-possible    # where no index gives advisories, say so and pass

pip-audit asks the index for each package's advisories. Where it has none to give, as a mirror may, or cannot be
reached, nothing was audited, which is no clean bill.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline import errors
from pipeline.errors import InputError, MachineError, ServerError

HERE = Path(__file__).parents[1]
LOCKS = (HERE / "requirements.lock", HERE / "docker/cluster.lock")
TOOL = "pip-audit==2.10.1"
_UNREACHED = ("connect", "failed to fetch", "timed out")  # what uv and pip-audit say of an index that is not there


def pip_audit(locks: Iterable[Path]) -> list[dict[str, Any]]:
    """Each pinned package as pip-audit's JSON has it: `name`, `version`, `vulns`; or `name`, `skip_reason`.

    Raises `ServerError` where no index can be reached, `MachineError` for all else that keeps it from answering.
    """
    uv = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    if uv is None:
        raise MachineError("uv is not installed", "make lint sets up .venv, which holds it")
    command = [uv, "tool", "run", "-q", TOOL, "--no-deps", "--disable-pip", "--format", "json"]
    named = [part for lock in locks for part in ("--requirement", str(lock))]
    told = subprocess.run([*command, *named], capture_output=True, text=True, check=False)
    try:
        packages: list[dict[str, Any]] = json.loads(told.stdout)["dependencies"]
    except ValueError as error:
        said = told.stderr.strip()
        if any(sign in said.lower() for sign in _UNREACHED):
            raise ServerError(f"no package index can be reached: {said}", "run it where one can") from error
        raise MachineError(f"{TOOL} gave no answer: {said}", "look at what it says") from error
    return packages


def check(packages: list[dict[str, Any]], console: Console) -> None:
    """Print what is known; `InputError` where a package is vulnerable, `ServerError` where nothing could be asked."""
    asked = [package for package in packages if "vulns" in package]
    for package in asked:
        for known in package["vulns"]:
            fixed = ", ".join(known["fix_versions"]) or "no version yet"
            named = f"{package['name']} {package['version']}: {known['id']}"
            console.print(f"{named}, corrected in {fixed}", soft_wrap=True)
    if not asked:
        raise ServerError(
            f"the package index holds no advisories for any of {len(packages)} packages: nothing was audited",
            "run it where PyPI itself answers",
        )
    console.print(f"{len(asked)} of {len(packages)} packages audited")
    vulnerable = [package["name"] for package in asked if package["vulns"]]
    if vulnerable:
        raise InputError(
            f"known vulnerabilities in {', '.join(vulnerable)}", "raise them in pyproject.toml, then make lock"
        )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m local.audit", description=__doc__.splitlines()[0])
    parser.add_argument("--if-possible", action="store_true", help="pass where no index gives advisories")
    given = parser.parse_args()
    console = Console()
    try:
        check(pip_audit(LOCKS), console)
    except ServerError as error:
        if not given.if_possible:
            raise
        console.print(f"not audited: {error}", soft_wrap=True)


if __name__ == "__main__":
    errors.run(main)
