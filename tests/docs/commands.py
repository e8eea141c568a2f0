"""The commands that the project shows: in Markdown, in the docstrings of its modules, and as targets of the Makefile.

A command that cannot be run everywhere says so in a comment of its line, or of a line above it in the same block:
`# needs a cluster` (see `NEED` for the others).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = (
    *("make", "python", "spark-submit", "deepspeed", "torchrun"),
    *("helm", "docker", "kubectl", "tensorboard", "lm_eval", "uv"),
)
NEED = re.compile(r"needs (a cluster|a container engine|GPUs|the Internet|TensorBoard|the extra [a-z]+)")
SHELL = ("sh", "bash", "shell", "console")
_VARIABLES = r"(?:[A-Z_]+=\S+ )*"
_COMMAND = re.compile(rf"{_VARIABLES}(?:{'|'.join(PROGRAMS)})\s+\S")
_COMMENT = re.compile(r"(?:^|\s+)#(?:\s.*)?$")
_INLINE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Command:
    """`text` as a shell would take it, found at `where` (file:line); `needs`: what most machines lack.

    `mentioned`: stands within a sentence, where it may be the beginning of a longer one.
    """

    where: str
    text: str
    needs: str | None = None
    mentioned: bool = False


def files(*suffixes: str) -> list[Path]:
    """Files of the project with these endings; hidden folders hold what was installed or made."""
    found = (path for suffix in suffixes for path in ROOT.rglob(f"*{suffix}"))
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(ROOT).parts))


def collect() -> list[Command]:
    """All commands of the project."""
    found = [command for file in files(".md") for command in of_markdown(name(file), file.read_text())]
    for file in files(".py"):
        module = ast.parse(file.read_text())
        if text := ast.get_docstring(module, clean=False):
            found += of_docstring(name(file), text, module.body[0].lineno)
    return [*found, *of_makefile((ROOT / "Makefile").read_text())]


def name(file: Path) -> str:
    """Path below the project folder."""
    return str(file.relative_to(ROOT))


def of_markdown(file: str, text: str) -> Iterator[Command]:
    """Blocks fenced as a shell's and indented blocks: every line. Elsewhere: what looks like a command."""
    fence: str | None = None
    block: list[tuple[int, str]] = []
    before = ""
    for number, line in enumerate(text.splitlines(), 1):
        if opens := re.match(r"\s*```(\w*)", line):
            yield from of_block(file, block, fence in (*SHELL, None))
            fence, block = (opens[1] if fence is None else None), []
        elif fence is not None:
            if fence in (*SHELL, ""):
                block.append((number, line.strip()))
        elif line.startswith("    ") and (block or not before):
            block.append((number, line.strip()))
        elif line.strip():
            yield from of_block(file, block, True)
            block = []
            yield from of_sentence(file, number, line)
        before = line.strip()
    yield from of_block(file, block, True)


def of_docstring(file: str, text: str, first: int) -> Iterator[Command]:
    """Indented lines that begin with a program, with what is optional in brackets; and what a sentence mentions."""
    block: list[tuple[int, str]] = []
    for number, line in enumerate([*text.splitlines(), "."], first):
        if line.startswith("    "):
            block.append((number, re.sub(r"(?<=\s)\[([^\]]*)\]", r"\1", line.strip())))
        elif line:
            yield from of_block(file, block, False)
            block = []
            yield from of_sentence(file, number, line)


def of_block(file: str, lines: Sequence[tuple[int, str]], every: bool) -> Iterator[Command]:
    """Commands of a block of (number, line). `every`: each line is one; else those that begin with a program."""
    needs: str | None = None
    whole, begins = "", 0
    for number, line in lines:
        begins = begins if whole else number
        whole += line
        if whole.endswith("\\"):
            whole = whole[:-1]
            continue
        comment = _COMMENT.search(whole)
        text = " ".join(whole[: comment.start()].split() if comment else whole.split())
        told = NEED.search(comment[0]) if comment else None
        if not text:
            needs = told[1] if told else needs
        elif every or _COMMAND.match(text):
            yield Command(f"{file}:{begins}", text, told[1] if told else needs)
        whole = ""


def of_sentence(file: str, number: int, line: str) -> Iterator[Command]:
    """Commands within a sentence."""
    for text in _INLINE.findall(line):
        if _COMMAND.match(text):
            yield Command(f"{file}:{number}", text, mentioned=True)


def of_makefile(text: str) -> Iterator[Command]:
    """Each target that `make help` shows; what it needs stands there."""
    for number, line in enumerate(text.splitlines(), 1):
        if target := re.match(r"([a-z-]+):.*?## (.*)", line):
            told = NEED.search(target[2])
            yield Command(f"Makefile:{number}", f"make {target[1]}", told[1] if told else None)
