"""Types of the values that a recipe may set: models that refuse unknown keys, numbers with limits, names."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

# Strict: otherwise true would be read as 1 and "18" as 18.
Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]
Share = Annotated[float, Field(ge=0, lt=1, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Whole = Annotated[int, Field(ge=0, strict=True)]
Length = Annotated[float, Field(ge=0, strict=True)]
Positive = Annotated[float, Field(gt=0, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
# Of recipes, stages and datasets: names of folders, without the dot that separates the keys of an override.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)]


class Strict(BaseModel):
    """A frozen model that refuses unknown keys, so that a misspelt key is an error instead of a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


M = TypeVar("M", bound=BaseModel)


def checked(model: M, mistakes: list[str]) -> M:
    """Ends a validator: returns the model if there are no mistakes.

    Args:
        model: The model.
        mistakes: Lines of the form ``key: sentence``, the key relative to the model.

    Raises:
        ValueError: There are mistakes.
    """
    if mistakes:
        raise ValueError("\n".join(mistakes))
    return model
