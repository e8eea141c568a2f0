"""What all sections of a recipe share: strict values, units, and errors in words."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
# What several stages of training share.
Precision = Annotated[
    Literal["fp32", "bf16"],
    Field(description="Numbers of the products; weights, gradients and their sums are fp32 in both."),
]
EvaluateEvery = Annotated[int, Field(ge=1, description="Steps between two measurements on what was held out.")]
CheckpointEvery = Annotated[int, Field(ge=1, description="Steps between two checkpoints, from which a run goes on.")]
KeepCheckpoints = Annotated[int, Field(ge=1, description="The newest that stay, each with an export.")]
NewTokens = Annotated[int, Field(ge=1, description="Tokens of an answer, at most.")]


class Section(BaseModel):
    """Base of all parts of a recipe: unknown keys are refused, values are never converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def reason(error: Any) -> str:
    """What is wrong with a value, from pydantic's error, with the value."""
    if error["type"] == "extra_forbidden":
        return "unknown key"
    if error["type"] == "missing":
        return "missing"
    given = error.get("input")
    shown = "" if isinstance(given, (dict, BaseModel)) else f" (given: {json.dumps(given, default=str)})"
    return f"{error['msg']}{shown}"
