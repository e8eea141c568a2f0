"""Which tests stay in one process when there are several."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import GROUPS

ROOT = Path(__file__).parent.parent
# Modules with a fixture of the module whose tests only read it: in two processes each makes its own.
INDEPENDENT = {
    "tests/docker/test_images.py",
    "tests/tokenizer/test_bpe.py",
    "tests/training/test_checkpoint.py",
    "tests/training/test_nodes.py",
}
SHARED = {
    str(file.relative_to(ROOT))
    for file in (ROOT / "tests").rglob("test_*.py")
    if file != Path(__file__) and 'scope="module"' in file.read_text()
}


@pytest.mark.parametrize("module", sorted(SHARED))
def test_a_module_whose_tests_share_something_is_in_a_group_or_says_that_it_needs_none(module: str) -> None:
    assert any(module.startswith(start) for start in GROUPS) != (module in INDEPENDENT)


def test_no_name_is_stale() -> None:
    assert INDEPENDENT <= SHARED
    assert all((ROOT / start).exists() for start in GROUPS)
