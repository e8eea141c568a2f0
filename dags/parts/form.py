"""The trigger form: every value of a recipe as one `Param`, so that Airflow validates it before anything runs.

What people change first comes first, all else is behind one section. A field is named as on the command line
(`pretrain.optimizer.lr`). Empty means "as in the recipe": so what is filled is what differs, and the help text gives
the values of the recipes that come with the project. Booleans are a choice of yes and no, because Airflow's switch
cannot be empty.
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

_PROJECT = Path(__file__).resolve().parents[2]
MORE = "More settings (an empty field: as in the recipe)"
# Beside the recipe and the files. Airflow shows fields without a section above all others. Its editors of JSON are so
# tall that they come last.
FIRST = (
    "deduplicate.min_jaccard",
    "model.layers",
    "pretrain.steps",
    "pretrain.batch",
    "pretrain.optimizer.lr",
    "rl.steps",
    "sft.tasks",
    "filter.languages",
    "extract.languages",
)
_FILES = ("warcs", "crawl", "max_warcs")
_RUN_FIELDS = ("recipe", "root", *_FILES, "force", "corpus_run")  # they are not keys of the recipe
_YES_NO = {True: "yes", False: "no"}
# Airflow names the run; the input has the fields `_FILES`; memorization is measured by a command, not by a task.
_NO_FIELDS = ("name", "input", "memorization")
_SHORT = 60  # characters of a value; a longer one is shown of the proposed recipe only


def leaves(schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted key, schema) of every value below an object schema, `$ref`s inlined.

    Airflow does not resolve `$defs` in a `Param` (PointerToNowhere), so none may remain.
    """
    definitions = schema.get("$defs", {})
    for name, field in schema["properties"].items():
        inlined = _of_kinds(_inline(field, definitions))
        key = f"{prefix}{name}"
        if "properties" in inlined:
            yield from leaves({**inlined, "$defs": definitions}, f"{key}.")
        else:
            yield key, inlined


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
        # Keys beside a $ref describe this field, those of its target the type.
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    # `leaves` inlines `properties` when it visits them.
    return {key: value if key == "properties" else _inline(value, definitions) for key, value in schema.items()}


def optional(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with null allowed, as Airflow's form supports it (`type` is a list, `enum` contains null)."""
    nullable = {key: value for key, value in schema.items() if key not in ("title", "default", "anyOf")}
    nullable |= next((kind for kind in schema.get("anyOf", []) if kind["type"] != "null"), {})  # null was allowed
    if "const" in nullable:
        nullable["enum"] = [nullable.pop("const")]
    if nullable["type"] == "boolean":
        nullable |= {"type": "string", "enum": [*_YES_NO.values()]}
    if "enum" in nullable:
        nullable |= {"enum": [*nullable["enum"], None], "values_display": {"null": "as in the recipe"}}
    if "prefixItems" in nullable:  # the form supports lists of one type only; the recipe validates the rest
        nullable["items"] = nullable.pop("prefixItems")[0]
    nullable["type"] = [nullable["type"], "null"]
    return nullable


def recipe_params(sections: Sequence[str] | None = None, shown: str | None = None) -> dict[str, Param]:
    """A `Param` for every value of a recipe, or of these sections, that a task reads; null: as in the recipe.

    Those of `FIRST` lead. `shown`: the recipe that the form proposes, whose values the help texts give, with those of
    the recipes that come with the project.
    """
    values = {_short_name(name): data for name in recipes(shown) if (data := _values(name))} if shown else {}
    fields = {
        key: schema
        for key, schema in leaves(Recipe.model_json_schema())
        if key.split(".")[0] not in _NO_FIELDS and (sections is None or key.split(".")[0] in sections)
    }
    order = [*(key for key in FIRST if key in fields), *(key for key in fields if key not in FIRST)]
    return {
        key: Param(
            None,
            description=_help(key, fields[key], values),
            title=key,
            **({} if key in FIRST else {"section": MORE}),
            **_kept(fields[key]),
        )
        for key in order
    }


def _kept(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in optional(schema).items() if key != "description"}


def _range(schema: dict[str, Any]) -> str:
    limits = optional(schema)
    lower = f"above {limits['exclusiveMinimum']:g}" if "exclusiveMinimum" in limits else None
    lower = f"from {limits['minimum']:g}" if "minimum" in limits else lower
    upper = f"to {limits['maximum']:g}" if "maximum" in limits else None
    text = " ".join(filter(None, (lower, upper)))
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _help(key: str, schema: dict[str, Any], values: dict[str, dict[str, Any]]) -> str | None:
    return " ".join(filter(None, (schema.get("description"), _range(schema), _in_recipes(key, values)))) or None


def _in_recipes(key: str, values: dict[str, dict[str, Any]]) -> str:
    """`demo, multilingual: 8; fineweb: 14`: what the recipes say of a key, the proposed one first."""
    names: dict[str, list[str]] = {}
    for number, (recipe, data) in enumerate(values.items()):
        *sections, last = key.split(".")
        section: dict[str, Any] = functools.reduce(lambda inner, part: inner.get(part, {}), sections, data)
        if last not in section:  # a key of another kind of the section
            continue
        value = _YES_NO[section[last]] if isinstance(section[last], bool) else section[last]
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        shown = text if number == 0 or len(text) <= _SHORT else "…"
        names.setdefault(shown, []).append(recipe)
    if len(names) == 1 and sum(map(len, names.values())) == len(values) > 1:
        return f"All recipes: {next(iter(names))}"
    return "; ".join(f"{', '.join(having)}: {text}" for text, having in names.items())


def _short_name(recipe: str) -> str:
    """`demo` for recipes/demo.yaml; a recipe from elsewhere keeps its path."""
    file = _PROJECT / recipe
    return file.stem if file.resolve().parent == _PROJECT / "recipes" else recipe


@functools.cache
def _values(recipe: str) -> dict[str, Any]:
    """The values of a recipe; empty if it cannot be read, since the run will report why."""
    if "://" in recipe:  # parsing a DAG must not download anything
        return {}
    try:
        return load(_PROJECT / recipe).model_dump(mode="json")
    except CrawlToChatError:
        return {}


def params(
    root: str, recipe: str, sections: Sequence[str] | None = None, files: Sequence[str] = _FILES
) -> dict[str, Param]:
    """The form for these sections, or for all. `root`, `recipe`: defaults of their fields.

    `files`: the fields of the input, shown if extract is among the sections.
    """
    input_fields = {
        "warcs": Param(
            None,
            type=["array", "null"],
            items={"type": "string"},
            description="WARC files, globs, URLs or lists of them, one per line, instead of the recipe's.",
        ),
        "crawl": Param(
            None,
            type=["string", "null"],
            pattern=CRAWL_ID,
            examples=["CC-MAIN-2025-05"],
            description="A Common Crawl id instead of files.",
        ),
        "max_warcs": Param(None, type=["integer", "null"], minimum=1, description="Read only the first so many files."),
    }
    of_recipe = recipe_params(sections, recipe)
    first = {
        "recipe": Param(
            recipe,
            type="string",
            minLength=1,
            examples=recipes(recipe),
            description="Recipe file, from the list or any path. A field below that stays empty is as in this recipe.",
        ),
        **({name: input_fields[name] for name in files} if sections is None or "extract" in sections else {}),
        **{key: param for key, param in of_recipe.items() if key in FIRST},
    }
    more = {
        "root": Param(
            root, type="string", minLength=1, section=MORE, description="Folder or URI below which artifacts lie."
        ),
        "force": Param(False, type="boolean", section=MORE, description="Make artifacts again that exist already."),
    }
    return first | more | of_recipe


def recipes(first: str) -> list[str]:
    """The choices for the recipe: `first`, then those that come with the project."""
    files = sorted(_PROJECT.glob("recipes/*.yaml"))
    return list(dict.fromkeys([first, *(f"recipes/{file.name}" for file in files)]))


def overrides(form: dict[str, Any]) -> dict[str, Any]:
    """The overrides for `pipeline.recipe.load` of a filled form: values by dotted key."""
    filled = {key: value for key, value in form.items() if value is not None}
    schemas = dict(leaves(Recipe.model_json_schema()))
    booleans = {word: value for value, word in _YES_NO.items()}
    changed = {
        key: booleans.get(str(value), value) if schemas.get(key, {}).get("type") == "boolean" else value
        for key, value in filled.items()
        if key not in _RUN_FIELDS
    }
    if "warcs" in filled or "crawl" in filled:
        changed["input.warcs"] = filled.get("warcs", [])
        changed["input.crawl"] = filled.get("crawl")
    if "max_warcs" in filled:
        changed["input.max_warcs"] = filled["max_warcs"]
    return changed


def changes(recipe: str, changed: dict[str, Any]) -> list[str]:
    """A line for each of these overrides that differs from the recipe: `pretrain.steps: 10 (recipe: 175)`."""
    try:
        data = load(recipe).model_dump(mode="json")
    except CrawlToChatError:  # complete only with the form
        data = {}
    lines = []
    for key, value in changed.items():
        *sections, last = key.split(".")
        section: dict[str, Any] = functools.reduce(lambda inner, part: inner.get(part, {}), sections, data)
        if last not in section:
            lines.append(f"{key}: {json.dumps(value, ensure_ascii=False)}")
        elif section[last] != value:
            before = json.dumps(section[last], ensure_ascii=False)
            lines.append(f"{key}: {json.dumps(value, ensure_ascii=False)} (recipe: {before})")
    return lines
