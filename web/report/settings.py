"""What a run was built with: its final recipe, as differences to the recipe that it is based on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifact import RunArtifacts

RECIPES = Path("recipes")  # those of the project: as for all relative paths of a recipe, in the working folder
ABSENT = "not set"


@dataclass(frozen=True)
class Settings:
    """`base`: name of the file that the recipe is compared with, empty for none. `text`: the whole recipe as YAML.

    `differences`: (dotted key, value of the run, value of the base), both as text.
    """

    base: str
    differences: list[tuple[str, str, str]]
    text: str


def of_run(run: RunArtifacts) -> Settings | None:
    """The settings of a run; None where it has no `recipe.yaml`, as one whose stages were started by hand."""
    recipe = recipe_of(run)
    if recipe is None:
        return None
    name, base = base_of(recipe, RECIPES)
    differences = compared(recipe, base) if name else []
    return Settings(name, differences, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100))


def recipe_of(run: RunArtifacts) -> dict[str, Any] | None:
    """The run's `recipe.yaml`, which is not validated: it may be of another version."""
    file = f"runs/{run.name}/recipe.yaml"
    recipe = yaml.safe_load(run.storage.read(file)) if run.storage.exists(file) else None
    return recipe if isinstance(recipe, dict) else None


def base_of(recipe: dict[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """File name and values of the recipe that another one is based on; empty where the folder holds none.

    That is what the file of its own name extends; else that file itself, whose values a form may have changed; for a
    name that no file has, the file with the fewest differences.
    """
    files = {file.name: _read(file) for file in sorted(folder.glob("*.yaml"))}
    own = next((name for name, data in files.items() if data.get("name") == recipe.get("name")), None)
    if own is not None:
        extended = (files[own].get("extends") or {}).get("recipe")
        name = extended if extended in files else own
        return name, files[name]
    complete = {name: data for name, data in files.items() if data and "extends" not in data}
    if not complete:
        return "", {}
    nearest = min(complete, key=lambda name: len(compared(recipe, complete[name])))
    return nearest, complete[nearest]


def _read(file: Path) -> dict[str, Any]:
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    return data if isinstance(data, dict) else {}


def compared(recipe: dict[str, Any], base: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(dotted key, value of the recipe, value of the base) wherever they differ, in the recipe's order."""
    ours, theirs = dict(_flat(recipe)), dict(_flat(base))
    keys = [*ours, *(key for key in theirs if key not in ours)]
    pairs = [(key, ours.get(key, ABSENT), theirs.get(key, ABSENT)) for key in keys if key != "name"]
    return [(key, _text(own), _text(other)) for key, own, other in pairs if own != other]


def _flat(data: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values; an empty mapping is a value."""
    pairs: list[tuple[str, Any]] = []
    for key, value in data.items():
        if isinstance(value, dict) and value:
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs


def _text(value: Any) -> str:
    """A value as a recipe writes it, on one line."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).removesuffix("...\n").strip()
