"""The JSON schema of recipes as they are written, for editors: it completes keys, and underlines those there are not.

A recipe as it is written is not the one that is checked in the end. It may leave out what another recipe or settings
say, take a key away with null, repeat stages, and hold ``extends``, ``settings``, ``defaults``, ``rounds`` and
``next_init``, which are gone when it is resolved. So the schema of the models is widened for these. What must hold
between keys it does not know: that is for ``embae recipes check``.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, get_args

from pydantic import BaseModel

from embae.trainer.recipe.rounds import MOST_ROUNDS
from embae.trainer.recipe.schema import Recipe

_NAME = {"type": ["string", "null"]}


def recipe_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe file, or of a file of settings."""
    found = Recipe.model_json_schema()
    kinds = {**found["$defs"], "Recipe": found}
    for kind, key, text in _described():
        if key in kinds.get(kind, {}).get("properties", {}):
            kinds[kind]["properties"][key]["description"] = text
    tree: dict[str, Any] = _widened(found)
    run = {"type": ["array", "null"], "minItems": 1,
           "items": {"type": ["string", "array"], "items": {"type": "string"}}}
    tree |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Recipe or settings of embae",
             "description": "Checked in full by: embae recipes check FILE"}
    tree["properties"] |= {
        "extends": {**_NAME, "description": "The recipe below this one: a shipped one's name, or a file."},
        "settings": {**_NAME, "description": "Settings over the recipe below: shipped ones' name, or a file."},
        "defaults": {"$ref": "#/$defs/Stage", "description": "Keys of each stage that does not set them itself."},
        "rounds": {"type": ["integer", "null"], "minimum": 1, "maximum": MOST_ROUNDS,
                   "description": "How often the stages in brackets of run are repeated."},
        "run": {**run, "description": "Stages in their order; those in brackets are repeated, see rounds."},
    }
    tree["$defs"]["Stage"]["properties"]["next_init"] = {
        **_NAME, "description": "init from the second round on: a stage of the round before."}
    return tree


def _described() -> Iterator[tuple[str, str, str]]:
    """Model, key and what the sources say of it in the string below it."""
    for name in dict.fromkeys(model.__module__ for model in _models(Recipe)):
        for kind in ast.parse(inspect.getsource(sys.modules[name])).body:
            for field, said in pairwise(kind.body if isinstance(kind, ast.ClassDef) else []):
                if (isinstance(kind, ast.ClassDef) and isinstance(field, ast.AnnAssign)
                        and isinstance(field.target, ast.Name) and isinstance(said, ast.Expr)
                        and isinstance(said.value, ast.Constant) and isinstance(said.value.value, str)):
                    yield kind.name, field.target.id, " ".join(said.value.value.split()).replace("``", "")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models of an annotation, and the models of their fields."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from _models(field.annotation)
    for argument in get_args(annotation):
        yield from _models(argument)


def _widened(tree: dict[str, Any]) -> dict[str, Any]:
    """Nothing is required, every value may be null, and names are of the pattern that they must be."""
    wide = {key: value for key, value in tree.items() if key not in ("required", "default")}
    for key in ("properties", "patternProperties", "$defs"):
        if key in wide:
            wide[key] = {name: _optional(_widened(inner)) for name, inner in wide[key].items()}
    if "patternProperties" in wide:
        wide["additionalProperties"] = False
    elif isinstance(wide.get("additionalProperties"), dict):
        wide["additionalProperties"] = _optional(_widened(wide["additionalProperties"]))
    if "anyOf" in wide:
        wide["anyOf"] = [_widened(one) for one in wide["anyOf"]]
    return wide


def _optional(tree: dict[str, Any]) -> dict[str, Any]:
    """A value or null; a ``$ref`` stays as it is, since what it points at may be null."""
    if "anyOf" in tree:
        rest = {key: value for key, value in tree.items() if key != "anyOf"}
        some = [one for one in tree["anyOf"] if one != {"type": "null"}]
        return {**rest, "anyOf": [*some, {"type": "null"}]} if len(some) > 1 else {**rest, **_optional(some[0])}
    if "const" in tree:
        tree = {**{key: value for key, value in tree.items() if key != "const"}, "enum": [tree["const"]]}
    wide = dict(tree)
    if "enum" in tree:
        wide["enum"] = [*tree["enum"], None]
    if "type" in tree:
        wide["type"] = [tree["type"], "null"]
    return wide
