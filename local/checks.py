"""Checks of the machine before anything starts. Those of the recipe and its inputs are in `pipeline/inputs.py`."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

from pipeline.errors import MachineError

_INSTALL_JAVA = "apt-get install openjdk-17-jre-headless"
_MIN_JAVA = 17  # the lowest that Spark 4 supports


def java() -> int:
    """Major version of the Java that Spark will use. Raises `MachineError` if it is missing or too old."""
    home = os.environ.get("JAVA_HOME")
    program = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if not program or not shutil.which(program):
        what = f"JAVA_HOME is {home}, which holds no bin/java" if home else "Java is not installed"
        raise MachineError(what, _INSTALL_JAVA)
    result = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    match = re.search(r'version "(?:1\.)?(\d+)', result.stderr + result.stdout)
    if result.returncode or not match:
        raise MachineError(f"{program} -version prints no version: {result.stderr.strip()}", _INSTALL_JAVA)
    version = int(match[1])
    if version < _MIN_JAVA:
        raise MachineError(f"{program} is Java {version}, and Spark needs {_MIN_JAVA} or newer", _INSTALL_JAVA)
    return version


def port(number: int) -> None:
    """Raise `MachineError` if this port of the loopback address is in use, or is no port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError as error:
            remedy = f"choose another: PORT={number + 1} make run"
            raise MachineError(f"port {number} cannot be used: {error.strerror}", remedy) from error
        except OverflowError as error:
            raise MachineError(
                f"{number} is no port", "choose one between 1024 and 65525: the pages use PORT + 10"
            ) from error
