"""How `make audit` reads pip-audit's results."""

from __future__ import annotations

import io
import subprocess

import pytest
from rich.console import Console

from local import audit
from pipeline.errors import InputError, MachineError, ServerError

CLEAN = {"name": "warcio", "version": "1.8.1", "vulns": []}
UNKNOWN = {"name": "mirrored", "skip_reason": "Dependency not found on PyPI and could not be audited: mirrored (1.0)"}
VULNERABLE = {
    "name": "jinja2",
    "version": "2.4.1",
    "vulns": [
        {"id": "PYSEC-2014-8", "fix_versions": ["2.7.2"], "aliases": [], "description": ""},
        {"id": "PYSEC-2019-217", "fix_versions": [], "aliases": [], "description": ""},
    ],
}


def test_a_vulnerable_package_fails_and_is_named() -> None:
    said = io.StringIO()
    with pytest.raises(InputError, match="jinja2") as error:
        audit.check([CLEAN, VULNERABLE, UNKNOWN], Console(file=said))
    assert "warcio" not in str(error.value)
    assert said.getvalue().splitlines() == [
        "jinja2 2.4.1: PYSEC-2014-8, corrected in 2.7.2",
        "jinja2 2.4.1: PYSEC-2019-217, corrected in no version yet",
        "2 of 3 packages audited",
    ]


def test_packages_without_known_vulnerabilities_pass() -> None:
    audit.check([CLEAN, UNKNOWN], Console(file=io.StringIO()))


def test_an_index_without_advisories_is_no_clean_bill() -> None:
    with pytest.raises(ServerError, match="nothing was audited"):
        audit.check([UNKNOWN, UNKNOWN], Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("error: Failed to fetch: `…/simple/pip-audit/`", ServerError),
        ("ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed", ServerError),
        ("ERROR:pip_audit._cli:requirement file requirements.lock contains invalid requirement", MachineError),
    ],
)
def test_a_tool_that_fails_is_not_an_index_that_cannot_be_reached(
    said: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr=said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(kind) as error:
        audit.pip_audit(audit.LOCKS)
    assert type(error.value) is kind and said in str(error.value)


@pytest.mark.slow
def test_the_tool_answers_for_every_pin() -> None:
    pins = [line for lock in audit.LOCKS for line in lock.read_text().splitlines() if "==" in line]
    try:
        packages = audit.pip_audit(audit.LOCKS)
    except ServerError as error:
        pytest.skip(str(error))  # no package index can be reached
    assert len(packages) == len(pins)
    assert all(("vulns" in package) != ("skip_reason" in package) for package in packages)
