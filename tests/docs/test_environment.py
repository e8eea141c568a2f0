"""docs/operate.md lists every environment variable that our code reads, with the rooms that read it and its default."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.docs.commands import ROOT, name

ROOMS = ("pipeline", "tokenizer", "inference", "evaluation", "training", "jobs", "web", "dags", "local", "docker")
SECTION = "Environment variables"


@dataclass
class Variable:
    """The rooms that read a variable, and the defaults they read it with."""

    rooms: set[str] = field(default_factory=set)
    defaults: set[str] = field(default_factory=set)


def constants(tree: ast.Module) -> dict[str, Any]:
    """Constants of a module, those that it imports from a module of ours among them."""
    known: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (file := ROOT / f"{(node.module or '').replace('.', '/')}.py").exists():
            theirs = constants(ast.parse(file.read_text()))
            known |= {alias.asname or alias.name: theirs.get(alias.name) for alias in node.names}
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            known[node.targets[0].id] = value_of(node.value, known)
    return known


def value_of(expression: ast.expr, known: dict[str, Any]) -> Any:
    """The value of a literal, of a constant, or of an item of a constant; None where only a run knows it."""
    match expression:
        case ast.Name(name):
            return known.get(name)
        case ast.Subscript(ast.Name(name), ast.Constant(place)) if known.get(name) is not None:
            return known[name][place]
        case _:
            try:
                return ast.literal_eval(expression)
            except ValueError:
                return None


@dataclass
class Source:
    """A file: its syntax tree with the parent of each node, and its constants."""

    tree: ast.Module
    parents: dict[ast.AST, ast.AST]
    known: dict[str, Any]

    @classmethod
    def of(cls, text: str) -> Source:
        tree = ast.parse(text)
        parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
        return cls(tree, parents, constants(tree))

    def reads(self) -> Iterator[tuple[str, Any]]:
        """Each variable that is read, with its default. Raises `ValueError` where the name is unknown before a run."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module == "os" and node.names[0].name in ("environ", "getenv"):
                raise ValueError(f"line {node.lineno}: import os, and read os.environ by name")
            for expression, default in self.read(node):
                value = self.looped(expression) or value_of(expression, self.known)
                if value is None:
                    raise ValueError(f"line {expression.lineno}: name the variable in a constant")
                for variable in [value] if isinstance(value, str) else value:
                    yield variable, value_of(default, self.known) if default else None

    def read(self, node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr | None]]:
        """The expressions for name and default, where a node reads the environment."""
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "os.getenv":
            yield node.args[0], (*node.args, None)[1]
        if not isinstance(node, ast.Attribute) or ast.unparse(node) != "os.environ":
            return
        match parent := self.parents[node]:
            case ast.Subscript(ctx=ast.Load()):
                yield parent.slice, None
            case ast.Compare():
                yield parent.left, None
            case ast.Attribute(attr="get" | "setdefault" | "pop"):
                call = self.parents[parent]
                assert isinstance(call, ast.Call)
                if parent.attr != "pop" or not isinstance(self.parents[call], ast.Expr):  # else it is only removed
                    yield call.args[0], (*call.args, None)[1]
            case ast.Subscript() | ast.Attribute(attr="update" | "items"):
                pass  # written, or looked through as a whole
            case ast.Dict() | ast.BinOp() | ast.keyword():
                pass  # handed on to a child process
            case _:
                raise ValueError(f"line {node.lineno}: read os.environ by name")

    def looped(self, expression: ast.expr) -> Any:
        """The values of the loop around an expression, where it is the loop's variable."""
        node: ast.AST | None = expression
        while node := self.parents.get(node):
            for loop in [node] if isinstance(node, ast.For) else getattr(node, "generators", []):
                if ast.unparse(loop.target) == ast.unparse(expression):
                    return value_of(loop.iter, self.known)
        return None


def of_code(text: str, room: str, found: dict[str, Variable]) -> None:
    """Add what a file reads."""
    for variable, default in Source.of(text).reads():
        found[variable].rooms.add(room)
        if default:
            found[variable].defaults.add(str(default))


def of_table(text: str) -> dict[str, tuple[set[str], str]]:
    """Rooms and default of each variable in the table of the section."""
    section = text.partition(f"## {SECTION}\n")[2].partition("\n## ")[0]
    rows = [row.split(" | ") for row in re.findall(r"^\| (`.*) \|$", section, re.M)]
    return {
        variable: (set(re.findall(r"`(\w+)/`", rooms)), default)
        for variables, rooms, default, _ in rows
        for variable in re.findall(r"`(\w+)`", variables)
    }


def code() -> dict[str, Variable]:
    found: dict[str, Variable] = defaultdict(Variable)
    for file in (file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))):
        try:
            of_code(file.read_text(), name(file).partition("/")[0], found)
        except ValueError as error:
            pytest.fail(f"{name(file)}: {error}")
    return found


def test_every_variable_that_is_read_is_in_the_table_and_no_other() -> None:
    table = of_table((ROOT / "docs/operate.md").read_text())
    assert {variable: rooms for variable, (rooms, _) in table.items()} == {
        variable: read.rooms for variable, read in code().items()
    }


def test_the_table_gives_the_defaults_of_the_code() -> None:
    table = of_table((ROOT / "docs/operate.md").read_text())
    wrong = {
        variable: read.defaults
        for variable, read in code().items()
        if variable in table and any(f"`{default}`" not in table[variable][1] for default in read.defaults)
    }
    assert not wrong


def test_reads_are_found_in_whatever_form() -> None:
    found: dict[str, Variable] = defaultdict(Variable)
    of_code(
        'import os\nA = "FIRST"\nMANY = ("SECOND", "THIRD")\nos.environ["SET"] = "1"\nos.environ.update(SET="1")\n'
        'os.getenv(A, "x")\nfor each in MANY: os.environ[each]\n"FOURTH" in os.environ\n{**os.environ}\n'
        'os.environ.setdefault("FIFTH", str(1))\nos.environ.get(MANY[0], 7)\n',
        "jobs",
        found,
    )
    assert {variable: read.defaults for variable, read in found.items()} == {
        **{"FIRST": {"x"}, "SECOND": {"7"}, "THIRD": set(), "FOURTH": set(), "FIFTH": set()}
    }
    for unclear in ("os.environ[f()]", "e = os.environ", "os.environ.get(x)", "from os import getenv"):
        with pytest.raises(ValueError):
            of_code(f"import os\n{unclear}\n", "jobs", found)
    assert of_table(f"## {SECTION}\n| a | b | c | d |\n| `A`, `B` | `jobs/` | `1` | x |\n\n## C\n| `C` | | | |\n") == {
        "A": ({"jobs"}, "`1`"),
        "B": ({"jobs"}, "`1`"),
    }
