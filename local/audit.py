"""Audits the packages in requirements.lock and docker/cluster.lock for known vulnerabilities, with pip-audit.

    make audit
    make audit ARGS=--if-possible    # pass, with a message, if no index has advisories

pip-audit queries the package index for advisories. An index that has none, as a mirror may, or that cannot be reached
means that nothing was audited: that is an error, not a clean result.
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
_UNREACHABLE = ("connect", "failed to fetch", "timed out")  # in the messages of uv and pip-audit


def pip_audit(locks: Iterable[Path]) -> list[dict[str, Any]]:
    """Each pinned package as in pip-audit's JSON: `name`, `version`, `vulns`; or `name`, `skip_reason`.

    Raises `ServerError` if no index can be reached, `MachineError` if pip-audit fails for another reason.
    """
    uv = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    if uv is None:
        raise MachineError("uv is not installed", "run make lint, which installs it in .venv")
    command = [uv, "tool", "run", "-q", TOOL, "--no-deps", "--disable-pip", "--format", "json"]
    files = [part for lock in locks for part in ("--requirement", str(lock))]
    result = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
    try:
        packages: list[dict[str, Any]] = json.loads(result.stdout)["dependencies"]
    except ValueError as error:
        message = result.stderr.strip()
        if any(sign in message.lower() for sign in _UNREACHABLE):
            raise ServerError(f"no package index can be reached: {message}", "run it where one can") from error
        raise MachineError(f"{TOOL} failed: {message}", "see its message") from error
    return packages


def check(packages: list[dict[str, Any]], console: Console) -> None:
    """Print all vulnerabilities. Raises `InputError` if there is one, `ServerError` if no package could be audited."""
    audited = [package for package in packages if "vulns" in package]
    for package in audited:
        for vulnerability in package["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            advisory = f"{package['name']} {package['version']}: {vulnerability['id']}"
            console.print(f"{advisory}, corrected in {fixed}", soft_wrap=True)
    if not audited:
        raise ServerError(
            f"the package index holds no advisories for any of {len(packages)} packages: nothing was audited",
            "run it where PyPI itself can be reached",
        )
    console.print(f"{len(audited)} of {len(packages)} packages audited")
    vulnerable = [package["name"] for package in audited if package["vulns"]]
    if vulnerable:
        raise InputError(
            f"known vulnerabilities in {', '.join(vulnerable)}", "raise them in pyproject.toml, then run make lock"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.audit", description=__doc__.splitlines()[0])
    parser.add_argument("--if-possible", action="store_true", help="pass if no index has advisories")
    options = parser.parse_args()
    console = Console()
    try:
        check(pip_audit(LOCKS), console)
    except ServerError as error:
        if not options.if_possible:
            raise
        console.print(f"not audited: {error}", soft_wrap=True)


if __name__ == "__main__":
    errors.run(main)
