"""Build DeepSpeed's shared-memory op before several ranks wait for it: `python -m training.launch.prebuild`.

The build takes one to two minutes. A build that was killed leaves a lock file for which every later one waits for ever;
here it is removed. Several prebuilds at once take turns.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import sysconfig
import time
from pathlib import Path

import training  # noqa: F401  sets TORCH_EXTENSIONS_DIR and PATH
from pipeline import errors
from pipeline.errors import MachineError

OP = "deepspeed_shm_comm"
_INSTALL = "apt-get install g++ python3-dev"


def check_compiler() -> None:
    """Raise `MachineError` where the C++ compiler or Python's headers are missing."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        raise MachineError("DeepSpeed needs a C++ compiler, and this machine has none", _INSTALL)
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        raise MachineError(f"DeepSpeed needs Python's headers, and {header} does not exist", _INSTALL)


def remove_locks(folder: Path) -> list[Path]:
    """Remove the lock files that killed builds left below `folder`; returns those removed."""
    locks = sorted(folder.glob("**/lock")) if folder.is_dir() else []
    for lock in locks:
        lock.unlink(missing_ok=True)
    return locks


def prepare(ranks: int) -> None:
    """To be called before DeepSpeed's `init_distributed`: it loads the op, and builds it where that was not done."""
    import deepspeed

    if ranks == 1:  # one process communicates with nobody
        deepspeed.ops.__compatible_ops__[OP] = False
        return
    from torch.utils import cpp_extension

    if " " in cpp_extension.TORCH_LIB_PATH:  # the one path that torch hands to the linker without quotes
        cpp_extension.TORCH_LIB_PATH = shlex.quote(cpp_extension.TORCH_LIB_PATH.strip("'"))


def build() -> float:
    """Build the op unless it is built; returns the seconds it took. With a GPU none is needed: nccl communicates."""
    import torch

    if torch.cuda.is_available():
        return 0.0
    check_compiler()
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (folder / "prebuild.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for lock in remove_locks(folder):
            print(f"removed the lock of a killed build: {lock}", flush=True)
        prepare(2)
        from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

        try:
            ShareMemCommBuilder().load(verbose=False)
        except (RuntimeError, ImportError, OSError) as error:
            raise MachineError(f"DeepSpeed's CPU op does not build in {folder}: {error}", _INSTALL) from error
    return time.monotonic() - started


def main() -> None:
    """Entry point."""
    seconds = build()
    print(f"DeepSpeed's CPU op is ready in {os.environ['TORCH_EXTENSIONS_DIR']} ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    errors.run(main)
