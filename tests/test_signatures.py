"""No function takes more than six parameters: what travels together is one frozen value."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import typer

from embae.trainer.commands.app import app

MOST = 6


def long_signatures(package: str) -> Iterator[str]:
    """Functions and methods of a package with more than `MOST` parameters, `self` and `cls` not counted."""
    root = Path(str(resources.files(f"embae.{package}")))
    for path in sorted(root.rglob("*.py")):
        module = ".".join(["embae", package, *path.relative_to(root).with_suffix("").parts])
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield from (f"{module}.{name}" for name in _within(tree, method=False))


def _within(parent: ast.AST, method: bool) -> Iterator[str]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{name}" for name in _within(node, method=True))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            static = any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in node.decorator_list)
            if _count(node.args) - (method and not static) > MOST:
                yield node.name
            yield from (f"{node.name}.{name}" for name in _within(node, method=False))
        else:
            yield from _within(node, method)


def _count(arguments: ast.arguments) -> int:
    named = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
    return named + (arguments.vararg is not None) + (arguments.kwarg is not None)


def commands(application: typer.Typer) -> Iterator[str]:
    """Functions registered as commands: their parameters are the options of the command line."""
    for command in application.registered_commands:
        assert command.callback
        yield f"{command.callback.__module__}.{command.callback.__qualname__}"
    for group in application.registered_groups:
        assert group.typer_instance
        yield from commands(group.typer_instance)


def test_no_function_takes_more_than_six_parameters() -> None:
    names = {name for package in ("datasets", "trainer", "slurm") for name in long_signatures(package)}
    assert not names - set(commands(app))
