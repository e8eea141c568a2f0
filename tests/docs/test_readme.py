"""The tree that README.md shows is the project's, and the picture of the stages is drawn from their list."""

from __future__ import annotations

import re

from tests.docs.commands import ROOT, files, name
from tests.test_imports import MAY
from web import road

RUN = ("jobs", "jobs/commands", "training", "evaluation", "inference")  # folders whose files that can be run are shown


def tree(text: str) -> dict[str, str]:
    """What the tree shows: path and description. A file belongs to the folder above it that is indented less."""
    block = re.search(r"## What is where\n+```text\n(.*?)```", text, re.S)
    assert block is not None
    shown: dict[str, str] = {}
    above: list[str] = []
    for line in block[1].splitlines():
        row = re.fullmatch(r"((?:  )*)(\S+) +(\S.*)", line)
        assert row is not None, f"no path with a description: {line!r}"
        above = [*above[: len(row[1]) // 2], row[2].rstrip("/")]
        shown["/".join(above) + "/" * row[2].endswith("/")] = row[3]
    return shown


TREE = tree((ROOT / "README.md").read_text())


def test_what_the_tree_shows_is_there() -> None:
    assert [path for path in TREE if not (ROOT / path).exists() or path.endswith("/") != (ROOT / path).is_dir()] == []


def test_every_folder_is_in_the_tree() -> None:
    """All folders of the project that hold code or text, and in a room all that hold modules."""
    made = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    names = (name(path).split("/") for path in files(".py", ".md", ".yaml"))
    folders = {f"{parts[0]}/" for parts in names if len(parts) > 1 and parts[0] not in made}
    for room in MAY:
        folders |= {f"{name(file.parent)}/" for file in (ROOT / room).glob("*/*.py")}
    assert folders - TREE.keys() == set()


def test_every_file_that_can_be_run_is_in_the_tree() -> None:
    programs = (file for folder in RUN for file in (ROOT / folder).glob("*.py"))
    assert {name(file) for file in programs if '__name__ == "__main__"' in file.read_text()} - TREE.keys() == set()


def test_the_picture_is_drawn_from_the_list_of_stages() -> None:
    assert (ROOT / "docs/road.svg").read_text() == road.svg(), "python -m web.road > docs/road.svg"
    assert "](docs/road.svg)" in (ROOT / "README.md").read_text()
