"""What all sections of a recipe share: strict values, units, and errors in plain words."""

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
    Field(
        description="dtype of matrix products (autocast); weights, gradients and optimizer state are fp32 either way."
    ),
]
EvaluateEvery = Annotated[int, Field(ge=1, description="Steps between two evaluations on the held-out split.")]
CheckpointEvery = Annotated[int, Field(ge=1, description="Steps between two checkpoints, from which a run resumes.")]
KeepCheckpoints = Annotated[int, Field(ge=1, description="Number of newest checkpoints to keep, each with an export.")]
NewTokens = Annotated[int, Field(ge=1, description="Largest length of an answer, tokens.")]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, and values are never converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def reason(error: Any) -> str:
    """One of pydantic's errors in plain words, with the value where it is short."""
    if error["type"] == "extra_forbidden":
        return "unknown key"
    if error["type"] == "missing":
        return "missing"
    value = error.get("input")
    shown = "" if isinstance(value, (dict, BaseModel)) else f" (given: {json.dumps(value, default=str)})"
    return f"{error['msg']}{shown}"
