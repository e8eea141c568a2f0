"""DeepSpeed's op for several ranks: not asked for by one process, built below any path, never waited for in vain."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from training.launch import prebuild

REPOSITORY = Path(__file__).parents[2]


def test_locks_of_killed_builds_are_removed(tmp_path: Path) -> None:
    (tmp_path / "op").mkdir()
    (tmp_path / "op/lock").touch()
    (tmp_path / "prebuild.lock").touch()  # whose turn it is: not a lock of a build
    assert prebuild.remove_locks(tmp_path) == [tmp_path / "op/lock"]
    assert prebuild.remove_locks(tmp_path / "none") == [] and (tmp_path / "prebuild.lock").exists()


def test_one_process_needs_no_op_and_several_link_below_a_path_with_a_space() -> None:
    code = (
        "import deepspeed; from torch.utils import cpp_extension; from training.launch import prebuild\n"
        "cpp_extension.TORCH_LIB_PATH = '/a b/lib'\n"
        "assert deepspeed.ops.__compatible_ops__[prebuild.OP]\n"
        "prebuild.prepare(2); prebuild.prepare(2)\n"
        "assert cpp_extension.TORCH_LIB_PATH == \"'/a b/lib'\" and deepspeed.ops.__compatible_ops__[prebuild.OP]\n"
        "prebuild.prepare(1); assert not deepspeed.ops.__compatible_ops__[prebuild.OP]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
