"""The image of training builds DeepSpeed's op from a few files of the project: they are all that it needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_files_that_are_copied_for_the_op_import_each_other(tmp_path: Path) -> None:
    before = (ROOT / "docker/Dockerfile").read_text().partition("python -m training.launch.prebuild")[0]
    copied = re.findall(r"^COPY ((?:\S+\.py )+)(\S+)/$", before, re.MULTILINE)
    assert len(copied) == 3
    for sources, folder in copied:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for source in sources.split():
            shutil.copy(ROOT / source, tmp_path / folder)
    code = "import training.launch.prebuild as op; print(op.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(str(tmp_path)), done.stderr
