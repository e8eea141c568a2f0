"""The scripts that benchmarks start as processes are where they say: no import checks that."""

from __future__ import annotations

import re

from bench.folders import HOME


def test_the_scripts_that_benchmarks_start_exist() -> None:
    sources = "\n".join(file.read_text() for file in (HOME / "bench").rglob("*.py"))
    scripts = set(re.findall(r'"((?:jobs|training|evaluation|bench)/\w+\.py)"', sources))
    assert scripts == {"training/pretrain.py", "evaluation/memorization.py", "bench/datatrove_fineweb.py"}
    assert [script for script in sorted(scripts) if not (HOME / script).is_file()] == []
