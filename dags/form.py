"""The trigger form: every value of a recipe as one `Param`, so that Airflow checks it before anything runs.

A field is named as on the command line (`pretrain.optimizer.lr`); empty means "as the recipe says".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from airflow.sdk import Param

from pipeline.recipe import Recipe

DAG_SECTION = "Run"
_NOT_HERE = ("name", "input")  # the run is named by Airflow; the input has fields of its own


def leaves(schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted key, schema) of every value below an object schema, `$ref`s inlined.

    Airflow resolves no `$defs` of a `Param` (PointerToNowhere), so none may be left.
    """
    definitions = schema.get("$defs", {})
    for name, field in schema["properties"].items():
        found = _inline(field, definitions)
        key = f"{prefix}{name}"
        if "properties" in found:
            yield from leaves({**found, "$defs": definitions}, f"{key}.")
        else:
            yield key, found


def _inline(schema: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inline(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[1]]
        # What stands beside a $ref says more of this field than what it points to.
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    # `properties` are inlined when they are walked.
    return {key: value if key == "properties" else _inline(value, definitions) for key, value in schema.items()}


def optional(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with null allowed, in the words that Airflow's form understands (`type` a list, `enum` with null)."""
    found = {key: value for key, value in schema.items() if key not in ("title", "default", "anyOf")}
    found |= next((kind for kind in schema.get("anyOf", []) if kind["type"] != "null"), {})  # was optional already
    if "const" in found:
        found["enum"] = [found.pop("const")]
    if "enum" in found:
        found["enum"] = [*found["enum"], None]
    if "prefixItems" in found:  # the form draws lists of one kind only; the recipe checks the rest
        found["items"] = found.pop("prefixItems")[0]
    found["type"] = [found["type"], "null"]
    return found


def title(key: str) -> str:
    """`pretrain.optimizer.lr` as the heading of its group: `pretrain · optimizer`."""
    return " · ".join(key.split(".")[:-1]) or DAG_SECTION


def recipe_params() -> dict[str, Param]:
    """A `Param` for every value of a recipe but its name and input, each null: as the recipe says."""
    return {
        key: Param(None, description=schema.get("description"), title=key, section=title(key), **_kept(schema))
        for key, schema in leaves(Recipe.model_json_schema())
        if key.split(".")[0] not in _NOT_HERE
    }


def _kept(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in optional(schema).items() if key != "description"}


def params(root: str) -> dict[str, Param]:
    """The whole form. `root`: where artifacts go unless the form says otherwise."""
    return {
        "recipe": Param("recipes/demo.yaml", type="string", minLength=1, description="Recipe file."),
        "root": Param(root, type="string", minLength=1, description="Folder or URI below which artifacts lie."),
        "warcs": Param(
            None,
            type=["array", "null"],
            items={"type": "string"},
            description="WARC files, globs, URLs or lists of them, one a line, instead of the recipe's.",
        ),
        "crawl": Param(
            None, type=["string", "null"], description="A Common Crawl id instead of files: CC-MAIN-2025-05."
        ),
        "max_warcs": Param(None, type=["integer", "null"], minimum=1, description="Read the first so many files only."),
        "force": Param(False, type="boolean", description="Make again what was made already."),
        **recipe_params(),
    }


def overrides(form: dict[str, Any]) -> dict[str, Any]:
    """What a filled form changes in the recipe, by dotted key: for `pipeline.recipe.load`."""
    given = {key: value for key, value in form.items() if value is not None}
    changed = {key: value for key, value in given.items() if key not in params("")} | {
        key: given[key] for key in recipe_params() if key in given
    }
    if "warcs" in given or "crawl" in given:
        changed["input.warcs"] = given.get("warcs", [])
        changed["input.crawl"] = given.get("crawl")
    if "max_warcs" in given:
        changed["input.max_warcs"] = given["max_warcs"]
    return changed
