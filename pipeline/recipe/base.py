"""What all sections of a recipe share: strict values, units, and errors in plain words."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from pipeline import available
from pipeline.storage import holds_password

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
_SHOWN_CHARS = 80  # of a wrong value
NewTokens = Annotated[int, Field(ge=1, description="New tokens per sample, at most.")]


def _known(kind: str, names: Callable[[], tuple[str, ...]]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in names():
            raise ValueError(f"there is no {kind} {name!r}: name one of {', '.join(names())}")
        return name

    return AfterValidator(check)


def _choice(names: tuple[str, ...]) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": [*names]})  # which the form offers, and refuses others


TaskName = Annotated[str, _known("task", available.tasks), _choice(available.tasks())]
ToolName = Annotated[str, _known("tool", available.tools), _choice(available.tools())]
Tasks = dict[TaskName, PositiveInt]  # how many questions of each
TaskWeights = dict[TaskName, Positive]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, and values are never converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def reason(error: Any) -> str:
    """One of pydantic's errors in plain words, with the value where it is plain and holds no password."""
    if error["type"] == "extra_forbidden":
        return "unknown key"
    if error["type"] == "missing":
        return "missing"
    message = str(error["msg"]).removeprefix("Value error, ")  # which pydantic puts before a message of ours
    value = error.get("input")
    inner = value if isinstance(value, list) else [value]
    if any(isinstance(part, (dict, list, BaseModel)) for part in inner):  # of aliases: it may be endless
        return message
    text = json.dumps(value, default=str, ensure_ascii=False)
    if holds_password(text):
        return message
    return f"{message} (given: {text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + '…'})"
