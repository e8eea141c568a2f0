"""The trigger form: every value of a recipe as one `Param`, so that Airflow checks it before anything runs.

A field is named as on the command line (`pretrain.optimizer.lr`); empty means "as the recipe says", and below it stands
what that is. Yes and no are words to choose from: Airflow draws a switch, which cannot be empty.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import Param

from pipeline.errors import CrawlToChatError
from pipeline.recipe import CRAWL_ID, Recipe, load

DAG_SECTION = "Run"
_FILES = ("warcs", "crawl", "max_warcs")
_RUN = ("recipe", "root", *_FILES, "force", "corpus_run")  # fields that are no recipe's
_WORDS = {True: "yes", False: "no"}
_NOT_HERE = ("name", "input")  # the run is named by Airflow; the input has fields of its own


def leaves(schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted key, schema) of every value below an object schema, `$ref`s inlined.

    Airflow resolves no `$defs` of a `Param` (PointerToNowhere), so none may be left.
    """
    definitions = schema.get("$defs", {})
    for name, field in schema["properties"].items():
        found = _of_kinds(_inline(field, definitions))
        key = f"{prefix}{name}"
        if "properties" in found:
            yield from leaves({**found, "$defs": definitions}, f"{key}.")
        else:
            yield key, found


def _of_kinds(schema: dict[str, Any]) -> dict[str, Any]:
    """A section that comes in several kinds, as one with the keys of all: the recipe says which go together."""
    kinds = [kind for kind in (*schema.get("oneOf", []), *schema.get("anyOf", [])) if "properties" in kind]
    if not kinds:
        return schema
    properties: dict[str, Any] = {}
    for kind in kinds:
        for name, field in kind["properties"].items():
            properties[name] = _either(properties[name], field) if name in properties else field
    return {"properties": properties}


def _either(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What either of two schemas of a key allows: two constants are a choice; else the wider one."""
    if one == other:
        return one
    if "const" in one and "const" in other:
        values = [one["const"], other["const"]]
        fixed = {} if one["type"] == "boolean" else {"enum": values}
        return {key: value for key, value in one.items() if key != "const"} | fixed
    wider, constant = (other, one) if "const" in one else (one, other)
    both: dict[str, Any] = {"examples": [constant["const"], *wider.get("examples", [])]}
    if "pattern" in wider:
        both["pattern"] = f"^{re.escape(constant['const'])}$|{wider['pattern']}"
    return wider | both


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
    if found["type"] == "boolean":
        found |= {"type": "string", "enum": [*_WORDS.values()]}
    if "enum" in found:
        found |= {"enum": [*found["enum"], None], "values_display": {"null": "as the recipe says"}}
    if "prefixItems" in found:  # the form draws lists of one kind only; the recipe checks the rest
        found["items"] = found.pop("prefixItems")[0]
    found["type"] = [found["type"], "null"]
    return found


def title(key: str) -> str:
    """`pretrain.optimizer.lr` as the heading of its group: `pretrain · optimizer`."""
    return " · ".join(key.split(".")[:-1]) or DAG_SECTION


def recipe_params(sections: Sequence[str] | None = None, shown: str | None = None) -> dict[str, Param]:
    """A `Param` for every value of a recipe, or of these sections, but its name and input; null: as the recipe says.

    `shown`: the recipe whose values stand in the help, where it can be read.
    """
    data = _values(shown) if shown else {}
    return {
        key: Param(None, description=_help(key, schema, shown, data), title=key, section=title(key), **_kept(schema))
        for key, schema in leaves(Recipe.model_json_schema())
        if key.split(".")[0] not in _NOT_HERE and (sections is None or key.split(".")[0] in sections)
    }


def _kept(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in optional(schema).items() if key != "description"}


def _range(schema: dict[str, Any]) -> str:
    found = optional(schema)
    least = f"above {found['exclusiveMinimum']:g}" if "exclusiveMinimum" in found else None
    least = f"from {found['minimum']:g}" if "minimum" in found else least
    said = " ".join(filter(None, (least, f"to {found['maximum']:g}" if "maximum" in found else None)))
    return f"{said[:1].upper()}{said[1:]}." if said else ""


def _help(key: str, schema: dict[str, Any], recipe: str | None, data: dict[str, Any]) -> str | None:
    said = [schema.get("description"), _range(schema)]
    *sections, last = key.split(".")
    section: dict[str, Any] = functools.reduce(lambda inner, part: inner.get(part, {}), sections, data)
    if last in section:  # a key of another kind of the section is not
        value = section[last]
        value = _WORDS[value] if isinstance(value, bool) else value
        said.append(f"{recipe}: {value if isinstance(value, str) else json.dumps(value)}")
    return " ".join(filter(None, said)) or None


def _values(recipe: str) -> dict[str, Any]:
    """What a recipe says; nothing where it cannot be read: the run will say why."""
    if "://" in recipe:  # nothing is fetched to draw a form
        return {}
    try:
        return load(Path(__file__).parents[2] / recipe).model_dump(mode="json")
    except CrawlToChatError:
        return {}


def params(
    root: str, recipe: str, sections: Sequence[str] | None = None, files: Sequence[str] = _FILES
) -> dict[str, Param]:
    """The form over these sections, or all. `root`, `recipe`: what is taken unless the form says otherwise.

    `files`: the fields of the input that it asks for, where extract is among the sections.
    """
    given = {
        "warcs": Param(
            None,
            type=["array", "null"],
            items={"type": "string"},
            description="WARC files, globs, URLs or lists of them, one a line, instead of the recipe's.",
        ),
        "crawl": Param(
            None,
            type=["string", "null"],
            pattern=CRAWL_ID,
            examples=["CC-MAIN-2025-05"],
            description="A Common Crawl id instead of files.",
        ),
        "max_warcs": Param(None, type=["integer", "null"], minimum=1, description="Read the first so many files only."),
    }
    return {
        "recipe": Param(
            recipe, type="string", minLength=1, examples=recipes(recipe), description="Recipe file, or another's path."
        ),
        "root": Param(root, type="string", minLength=1, description="Folder or URI below which artifacts lie."),
        **({name: given[name] for name in files} if sections is None or "extract" in sections else {}),
        "force": Param(False, type="boolean", description="Make again what was made already."),
        **recipe_params(sections, recipe),
    }


def recipes(first: str) -> list[str]:
    """The recipes that come with the project, to choose from; `first` before them."""
    found = sorted(Path(__file__).parents[2].glob("recipes/*.yaml"))
    return list(dict.fromkeys([first, *(f"recipes/{file.name}" for file in found)]))


def overrides(form: dict[str, Any]) -> dict[str, Any]:
    """What a filled form changes in the recipe, by dotted key: for `pipeline.recipe.load`."""
    given = {key: value for key, value in form.items() if value is not None}
    known = dict(leaves(Recipe.model_json_schema()))
    meant = {word: value for value, word in _WORDS.items()}
    changed = {
        key: meant.get(str(value), value) if known.get(key, {}).get("type") == "boolean" else value
        for key, value in given.items()
        if key not in _RUN
    }
    if "warcs" in given or "crawl" in given:
        changed["input.warcs"] = given.get("warcs", [])
        changed["input.crawl"] = given.get("crawl")
    if "max_warcs" in given:
        changed["input.max_warcs"] = given["max_warcs"]
    return changed
