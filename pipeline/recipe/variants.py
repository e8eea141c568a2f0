"""Sections that come in several kinds (`optimizer.kind`), and putting the data of two recipes together.

A key that means nothing in a kind is absent from it. So where a recipe or an option changes the kind of a section that
it takes over, the keys of the former kind leave with it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

Data = dict[str, Any]


def kinds(annotation: Any) -> list[type[BaseModel]]:
    """The section classes that a field may hold: none for a plain value, several where it comes in kinds."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    options = get_args(annotation) if get_origin(annotation) is not Literal else ()
    types = [option for annotated in options or (annotation,) for option in _unwrapped(annotated)]
    return [option for option in types if isinstance(option, type) and issubclass(option, BaseModel)]


def _unwrapped(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation)[:1] if get_origin(annotation) is Annotated else (annotation,)


def kind_of(options: list[type[BaseModel]], data: Data) -> type[BaseModel]:
    """The kind that this data is of, by its literal keys; the last one where none fits: its errors are shown."""
    for option in options:
        literals = {
            name: get_args(field.annotation)
            for name, field in option.model_fields.items()
            if get_origin(field.annotation) is Literal
        }
        if literals and all(data.get(name) in values for name, values in literals.items()):
            return option
    return options[-1]


def merged(base: Data, own: Data, model: type[BaseModel]) -> Data:
    """`own` over `base`, section by section: the value of a key replaces the base's, whatever it is."""
    result = base | own
    for name, field in model.model_fields.items():
        options = kinds(field.annotation)
        before, after = base.get(name), own.get(name)
        if options and isinstance(before, dict) and isinstance(after, dict):
            kind = kind_of(options, before | after)
            inherited = {key: value for key, value in before.items() if key in kind.model_fields}
            result[name] = merged(inherited, after, kind)
    return result


def settled(before: Data, after: Data, model: type[BaseModel], chosen: Collection[str], prefix: str = "") -> Data:
    """`after` without the keys of a kind that it no longer is, but those that were `chosen` by their dotted name."""
    result = dict(after)
    for name, field in model.model_fields.items():
        options = kinds(field.annotation)
        old, new = before.get(name), after.get(name)
        if options and isinstance(old, dict) and isinstance(new, dict):
            kind = kind_of(options, new)
            stale = () if kind is kind_of(options, old) else old.keys() - kind.model_fields.keys()
            own = {key: value for key, value in new.items() if key not in stale or f"{prefix}{name}.{key}" in chosen}
            result[name] = settled(old, own, kind, chosen, f"{prefix}{name}.")
    return result


def is_key(key: str, model: type[BaseModel]) -> bool:
    """Whether a dotted key names a value of a recipe, or one below a mapping of it."""
    first, _, rest = key.partition(".")
    if first not in model.model_fields:
        return False
    options = kinds(model.model_fields[first].annotation)
    return not rest or not options or any(is_key(rest, option) for option in options)


def location(loc: tuple[int | str, ...], model: type[BaseModel]) -> tuple[int | str, ...]:
    """The place of an error in a file: pydantic names the kind of a section too, which no file does."""
    if not loc or loc[0] not in model.model_fields:
        return loc
    first, *rest = loc
    options = kinds(model.model_fields[str(first)].annotation)
    if len(options) > 1:
        rest = rest[1:]
    inner = next((option for option in options if rest and rest[0] in option.model_fields), None)
    return (first, *(location(tuple(rest), inner) if inner else rest))
