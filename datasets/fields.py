"""The types that settings are made of: models that refuse unknown keys, and kinds of numbers and names."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

# Strict: else true would be a 1 and "18" an 18.
Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]
Share = Annotated[float, Field(ge=0, lt=1, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Whole = Annotated[int, Field(ge=0, strict=True)]
Length = Annotated[float, Field(ge=0, strict=True)]
Positive = Annotated[float, Field(gt=0, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
# Of recipes, stages and datasets: they become folders, and a dot would part them in an override.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)]


class Strict(BaseModel):
    """Unknown keys are errors: a typo never becomes a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


M = TypeVar("M", bound=BaseModel)


def checked(model: M, wrong: list[str]) -> M:
    """What a validator returns; each mistake is a line ``key: sentence``, the key relative to the model."""
    if wrong:
        raise ValueError("\n".join(wrong))
    return model
