"""What is checked before anything starts."""

from __future__ import annotations

import socket

import pytest

from local import checks
from pipeline.errors import MachineError


def program(folder, text):
    file = folder / "bin" / "java"
    file.parent.mkdir(parents=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file.parent


def test_without_java_the_error_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(MachineError, match=r"Java is not installed\n  -> apt-get install openjdk-17"):
        checks.java()


def test_a_wrong_java_home_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(MachineError, match=r"JAVA_HOME is .* holds no bin/java"):
        checks.java()


@pytest.mark.parametrize(
    ("output", "version"), [('openjdk version "17.0.12" 2024-07-16', 17), ('openjdk version "21" 2023-09-19', 21)]
)
def test_java_that_spark_can_use(monkeypatch, tmp_path, output, version):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(program(tmp_path, f"echo '{output}' >&2")))
    assert checks.java() == version


def test_an_old_java_is_refused(monkeypatch, tmp_path):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(program(tmp_path, """echo 'java version "1.8.0_292"' >&2""")))
    with pytest.raises(MachineError, match=r"is Java 8, and Spark needs 17"):
        checks.java()


def test_a_taken_port_is_named_with_the_way_out():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(MachineError, match=f"port {number} cannot be used(.|\n)*PORT={number + 1} make run"):
            checks.port(number)
    checks.port(number)


def test_a_number_that_is_no_port():
    with pytest.raises(MachineError, match="99999 is no port"):
        checks.port(99999)
