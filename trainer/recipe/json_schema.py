"""The JSON schema of recipes as they are written, for editors that complete keys and underline unknown ones.

A recipe file differs from the resolved recipe that is checked in the end. It may leave out what another recipe or
settings define, remove a key with null, and repeat stages. It may also have ``extends``, ``settings``, ``defaults``,
``rounds`` and ``next_init``, which resolving removes. The schema of the models is therefore widened for these. It does
not know the rules between keys: ``embae recipes check`` does.
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
    strict = Recipe.model_json_schema()
    models = {**strict["$defs"], "Recipe": strict}
    for model, key, text in _key_descriptions():
        if key in models.get(model, {}).get("properties", {}):
            models[model]["properties"][key]["description"] = text
    schema: dict[str, Any] = _widen(strict)
    run = {"type": ["array", "null"], "minItems": 1,
           "items": {"type": ["string", "array"], "items": {"type": "string"}}}
    schema |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Recipe or settings of embae",
               "description": "Checked in full by: embae recipes check FILE"}
    schema["properties"] |= {
        "extends": {**_NAME, "description": "The recipe below this one: the name of a shipped one, or a file."},
        "settings": {**_NAME, "description": "Settings over the recipe below: the name of shipped ones, or a file."},
        "defaults": {"$ref": "#/$defs/Stage", "description": "Keys of each stage that does not set them itself."},
        "rounds": {"type": ["integer", "null"], "minimum": 1, "maximum": MOST_ROUNDS,
                   "description": "How often the stages in brackets of run are repeated."},
        "run": {**run, "description": "Stages in their order; those in brackets are repeated, see rounds."},
    }
    schema["$defs"]["Stage"]["properties"]["next_init"] = {
        **_NAME, "description": "init from the second round: a stage of the previous round."}
    return schema


def _key_descriptions() -> Iterator[tuple[str, str, str]]:
    """Model, key, and the string below the key in the source file."""
    for module in dict.fromkeys(model.__module__ for model in _models(Recipe)):
        for node in ast.parse(inspect.getsource(sys.modules[module])).body:
            for field, text in pairwise(node.body if isinstance(node, ast.ClassDef) else []):
                if (isinstance(node, ast.ClassDef) and isinstance(field, ast.AnnAssign)
                        and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
                        and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)):
                    yield node.name, field.target.id, " ".join(text.value.value.split()).replace("``", "")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models of an annotation, and the models of their fields."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from _models(field.annotation)
    for argument in get_args(annotation):
        yield from _models(argument)


def _widen(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with nothing required and every value optional; the names of a mapping keep their pattern."""
    wide = {key: value for key, value in schema.items() if key not in ("required", "default")}
    for key in ("properties", "patternProperties", "$defs"):
        if key in wide:
            wide[key] = {name: _allow_null(_widen(inner)) for name, inner in wide[key].items()}
    if "patternProperties" in wide:
        wide["additionalProperties"] = False
    elif isinstance(wide.get("additionalProperties"), dict):
        wide["additionalProperties"] = _allow_null(_widen(wide["additionalProperties"]))
    if "anyOf" in wide:
        wide["anyOf"] = [_widen(option) for option in wide["anyOf"]]
    return wide


def _allow_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A value or null; a ``$ref`` stays as it is, since its target allows null."""
    if "anyOf" in schema:
        rest = {key: value for key, value in schema.items() if key != "anyOf"}
        options = [option for option in schema["anyOf"] if option != {"type": "null"}]
        if len(options) > 1:
            return {**rest, "anyOf": [*options, {"type": "null"}]}
        return {**rest, **_allow_null(options[0])}
    if "const" in schema:
        schema = {**{key: value for key, value in schema.items() if key != "const"}, "enum": [schema["const"]]}
    wide = dict(schema)
    if "enum" in schema:
        wide["enum"] = [*schema["enum"], None]
    if "type" in schema:
        wide["type"] = [schema["type"], "null"]
    return wide
