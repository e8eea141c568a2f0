"""Reading a recipe file: whatever is wrong in it is reported with file, line and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.errors import InputError, RecipeError
from pipeline.recipe.base import reason
from pipeline.recipe.recipe import Recipe
from pipeline.storage import Storage


def load(path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe from a file or a URI.

    `overrides` maps dotted keys (`sft.epochs`) to values that replace the file's. Relative paths in the recipe start
    from the working folder, as on a command line.

    Raises `InputError` where there is no such file, `RecipeError` with file, line and key for anything wrong in it.
    """
    folder, _, file = str(path).rpartition("/")
    if "://" in folder:
        return parse(Storage(folder).read(file).decode("utf-8", "replace"), str(path), overrides)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"recipe {path} cannot be read: {error.strerror}", "name a file, see recipes/") from error
    return parse(text, str(path), overrides)


def parse(text: str, name: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """As `load`, from the text of a recipe; errors name `name` as the file."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", error)
        if isinstance(error, yaml.constructor.ConstructorError):  # a tag: safe_load refuses to build Python objects
            raise RecipeError(f"{where}: {problem}", "write plain values: a recipe has no tags") from error
        raise RecipeError(f"{where}: not YAML: {problem}", "correct the line") from error
    _refuse_duplicates(node, name)
    if not isinstance(data, dict):
        raise RecipeError(f"{name}: a recipe is a mapping of sections", "start from recipes/demo.yaml")
    for key, value in (overrides or {}).items():
        _override(data, key, value, name)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = [f"{name}:{_line(node, e['loc'])}: {_key(e['loc'])}: {reason(e)}" for e in error.errors()]
        raise RecipeError("\n".join(lines), "correct the keys above; recipes/demo.yaml is a complete example") from None


def _refuse_duplicates(node: yaml.Node | None, name: str, visited: set[int] | None = None) -> None:
    """YAML silently takes the last of two equal keys. `visited`: nodes to which an alias may lead again."""
    visited = set() if visited is None else visited
    if isinstance(node, yaml.MappingNode) and id(node) not in visited:
        visited.add(id(node))
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise RecipeError(f"{name}:{key.start_mark.line + 1}: {key.value}: given twice", "remove one of them")
            seen.add(key.value)
            _refuse_duplicates(value, name, visited)


def _override(data: dict[str, Any], key: str, value: Any, name: str) -> None:
    *folders, last = key.split(".")
    for folder in folders:
        data = data.get(folder, {})
        if not isinstance(data, dict):
            break
    if not isinstance(data, dict) or last not in data:
        raise RecipeError(f"override {key!r}: {name} has no such key", "use the dotted key of a value in the recipe")
    data[last] = value


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "recipe"


def _line(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """Line of the deepest part of `location` that the file contains."""
    line = 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                break
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
