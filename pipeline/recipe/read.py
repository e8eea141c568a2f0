"""Reading a recipe file: whatever is wrong in it is reported with file, line and key."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.errors import InputError, RecipeError
from pipeline.recipe import variants
from pipeline.recipe.base import reason
from pipeline.recipe.recipe import Recipe
from pipeline.storage import Storage


def load(path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe from a file or a URI.

    `overrides` maps dotted keys (`sft.epochs`) to values that replace the file's. A recipe that `extends` another holds
    only what differs; the other's name is relative to its folder. All other relative paths start from the working
    folder, as on a command line.
    Raises `InputError` where there is no such file, `RecipeError` with file, line and key for anything wrong in it.
    """
    return parse(_text(str(path)), str(path), overrides)


def parse(text: str, name: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """As `load`, from the text of a recipe; `name` stands for the file in errors."""
    data, node = _data(text, name)
    files = [(name, node)]
    if (extends := data.pop("extends", None)) is not None:
        base, base_name, base_node = _base(extends, name)
        data = variants.merged(base, data, Recipe)
        files.append((base_name, base_node))
    written = copy.deepcopy(data)
    for key, value in (overrides or {}).items():
        _override(data, key, value, name)
    try:
        return Recipe.model_validate(variants.settled(written, data, Recipe, overrides or {}))
    except ValidationError as error:
        lines = []
        for detail in error.errors():
            place = variants.location(detail["loc"], Recipe)
            lines.append(_blamed(files, place, reason(detail), overrides or {}))
        raise RecipeError("\n".join(lines), "correct the keys above; recipes/demo.yaml is a complete example") from None


def _text(path: str) -> str:
    return _decoded(_bytes(path), path)


def _decoded(content: bytes, name: str) -> str:
    """The text of a recipe file. Raises `RecipeError` with the line where it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{name}:{line}: not UTF-8: {error.reason}", "save the file as UTF-8") from error


def _bytes(path: str) -> bytes:
    folder, _, file = path.rpartition("/")
    if "://" in folder:
        return Storage(folder).read(file)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"recipe {path} cannot be read: {error.strerror}", "name a file, see recipes/") from error


def _data(text: str, name: str) -> tuple[dict[str, Any], yaml.Node | None]:
    """A recipe file as plain data, and where its keys stand."""
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
    return data, node


def _base(extends: Any, name: str) -> tuple[dict[str, Any], str, yaml.Node | None]:
    """The recipe that another one extends: its bytes must be those that the other was written for."""
    if not (isinstance(extends, dict) and extends.keys() == {"recipe", "sha256"}):
        raise RecipeError(f"{name}: extends: not a recipe with its hash", "write extends: {recipe: FILE, sha256: …}")
    folder, slash, _ = name.rpartition("/")
    base_name = f"{folder}{slash}{extends['recipe']}"
    content = _bytes(base_name)
    if (checksum := hashlib.sha256(content).hexdigest()) != extends["sha256"]:
        raise RecipeError(
            f"{name}: extends: {base_name} is not the file that this recipe was written for",
            f"see what changed in it; if this recipe still means what it says, write sha256: {checksum}",
        )
    base, node = _data(_decoded(content, base_name), base_name)
    if "extends" in base:
        raise RecipeError(f"{name}: extends: {base_name} extends a recipe itself", "extend that one, or copy")
    return base, base_name, node


def _refuse_duplicates(node: yaml.Node | None, name: str, visited: set[int] | None = None) -> None:
    """YAML silently takes the last of two equal keys. `visited`: nodes to which an alias may lead again."""
    visited = set() if visited is None else visited
    if id(node) in visited:
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item, name, visited)
    elif isinstance(node, yaml.MappingNode):
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
    # A key of another kind of the section is not there yet.
    if not isinstance(data, dict) or not (last in data or (data and variants.is_key(key, Recipe))):
        raise RecipeError(f"override {key!r}: {name} has no such key", "use the dotted key of a value in the recipe")
    data[last] = value


def _blamed(
    files: list[tuple[str, yaml.Node | None]], place: tuple[int | str, ...], problem: str, overrides: dict[str, Any]
) -> str:
    """What is wrong, and where: at a line of a file, or in a value of the command line or a form, which has none."""
    key = _key(place)
    if any(f"{key}.".startswith(f"{given}.") for given in overrides):
        return f"command line or form: {key}: {problem}"
    # A rule about a section as a whole: the file alone may well obey it.
    changed = [given for given in overrides if not place or given.startswith(f"{key}.")]
    beside = f" (with {', '.join(changed)} from the command line or form)" if changed else ""
    return f"{_where(files, place)}: {key}: {problem}{beside}"


def _where(files: list[tuple[str, yaml.Node | None]], place: tuple[int | str, ...]) -> str:
    """File and line of a key: of the first of these files that holds the most of it."""
    depths = [_line(node, place) for _, node in files]
    best = max(range(len(files)), key=lambda number: (depths[number][1], -number))
    return f"{files[best][0]}:{depths[best][0]}"


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "recipe"


def _line(node: yaml.Node | None, location: tuple[int | str, ...]) -> tuple[int, int]:
    """Line of the deepest part of `location` that stands in the file, and how deep that is."""
    line = 1
    for depth, part in enumerate(location):
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                return line, depth
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line, depth
    return line, len(location)
