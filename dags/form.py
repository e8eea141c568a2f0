"""The trigger form of a DAG, made from the recipe model: nested sections flattened to `section.key`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from airflow.sdk import Param

from pipeline.recipe import Recipe

# Keys of a JSON schema that Airflow's form understands.
_KNOWN = ("enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern")
_OWN = ("name", "input")  # have fields of their own in the form, or are no choice of it


def leaves(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted key, schema) of each value in the model's JSON schema, `$ref`s inlined: Airflow cannot follow them."""
    definitions = schema.get("$defs", {})

    def walk(prefix: str, node: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        for key, value in node["properties"].items():
            if reference := value.get("$ref"):
                yield from walk(f"{prefix}{key}.", definitions[reference.rsplit("/", 1)[1]])
            else:
                yield f"{prefix}{key}", value

    yield from walk("", schema)


def overrides() -> dict[str, Param]:
    """One optional field a recipe value; left empty it means: as the recipe says."""
    fields = {}
    for key, value in leaves(Recipe.model_json_schema()):
        section, _, name = key.partition(".")
        if section in _OWN:
            continue
        kind = value.get("type", "string")
        known = {word: value[word] for word in _KNOWN if word in value}
        if "enum" in known:
            known["enum"] = [None, *known["enum"]]
        description = value.get("description", "") + " Empty: as the recipe says."
        title, group = (name, section) if name else (key, "recipe")
        fields[key] = Param(
            None, type=["null", kind], title=title, section=group, description_md=description.strip(), **known
        )
    return fields


def chosen(params: dict[str, Any]) -> dict[str, Any]:
    """The recipe values that a filled form sets, by dotted key, and its input."""
    keys = {key for key, _ in leaves(Recipe.model_json_schema())}
    values = {key: value for key, value in params.items() if key in keys and value is not None}
    if params.get("warcs"):
        values |= {"input.warcs": list(params["warcs"]), "input.crawl": None}
    if params.get("crawl"):
        values |= {"input.warcs": [], "input.crawl": params["crawl"]}
    if params.get("max_warcs"):
        values["input.max_warcs"] = params["max_warcs"]
    return values
