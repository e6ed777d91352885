"""Names: a local name says what it holds, and private names stay in their module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TypeGuard

import pytest

EMPTY = {"found", "told", "said", "asked", "own", "known", "given", "wanted", "made", "kept", "taken"}
"""They say that there is a thing, and not what it is."""

TESTS = Path(__file__).parent


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package in ("datasets", "trainer", "slurm"):
        root = Path(str(resources.files(f"embae.{package}")))
        for path in sorted(root.rglob("*.py")):
            name = f"{package}/{path.relative_to(root).as_posix()}"
            yield name, ast.parse(path.read_text(encoding="utf-8"), name)


def bound_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Names that a module gives to values: variables, loop variables, parameters, imports under another name."""
    keys = {id(field.target) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
            for field in node.body if isinstance(field, ast.AnnAssign)}  # names of recipe keys and columns on disk
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in keys:
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, 0


def test_no_name_is_empty() -> None:
    wrong = {name: [f"{line}: {bound}" for bound, line in bound_names(tree) if bound in EMPTY]
             for name, tree in modules()}
    assert not {name: lines for name, lines in wrong.items() if lines}


def is_private(node: ast.AST) -> TypeGuard[ast.Attribute]:
    return isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")


def private_imports(tree: ast.Module) -> Iterator[str]:
    """Private names of embae that a module takes from another one."""
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("embae"):
            for name in node.names:
                modules.add(name.asname or name.name)
                if name.name.startswith("_"):
                    yield f"{node.lineno}: {node.module}.{name.name}"
    for node in ast.walk(tree):
        if is_private(node) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield f"{node.lineno}: {node.value.id}.{node.attr}"


def test_private_names_stay_in_their_module() -> None:
    wrong = {name: list(private_imports(tree)) for name, tree in modules()}
    assert not {name: lines for name, lines in wrong.items() if lines}


# Of torch and TensorBoard, which tests look into on purpose.
FOREIGN = {"_BatchNorm", "_cdata", "_read_tensor_tsv_file"}


def private_uses(tree: ast.Module) -> Iterator[str]:
    """Private names that a test takes from embae, or from an object: anything but its own."""
    yield from private_imports(tree)
    defined = FOREIGN | {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in ast.walk(tree):
        if is_private(node) and node.attr not in defined and ast.unparse(node.value) not in ("self", "cls", "os"):
            yield f"{node.lineno}: .{node.attr}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr") and len(node.args) > 1:
            name = node.args[1]
            if isinstance(name, ast.Constant) and str(name.value).startswith("_") and str(name.value)[1:2] != "_":
                yield f"{node.lineno}: setattr {name.value}"


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.relative_to(TESTS).as_posix())
def test_tests_use_public_names_only(path: Path) -> None:
    assert not list(private_uses(ast.parse(path.read_text(encoding="utf-8"))))
