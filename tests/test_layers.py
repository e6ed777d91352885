"""How the folders of trainer/ and datasets/ stand to each other: docs/architecture.md shows the same in words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module, resources
from pathlib import Path

import pytest

# Each folder or file imports only those that stand before it.
LAYERS = {
    "datasets": [
        "errors", "fields", "console", "files", "remote", "images", "index", "sampling", "loading", "sharding",
        "inspection", "merging", "synthetic", "readers", "image_source",
    ],
    "trainer": [
        "errors", "retrieval", "clustering", "losses", "recipe", "runtime", "model", "runs", "monitoring", "inference",
        "evaluation", "training", "comparison", "performance", "deployment", "report", "commands",
    ],
}  # fmt: skip


def root(package: str) -> Path:
    return Path(str(resources.files(f"embae.{package}")))


def arrows(package: str) -> Iterator[tuple[str, str, str]]:
    """Folder, imported folder, and the line, of every import; lazy and type-only ones too."""
    for path in root(package).rglob("*.py"):
        folder = path.relative_to(root(package)).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if folder.startswith("__") or not isinstance(node, ast.ImportFrom):
                continue
            for name in node.names:
                parts = f"{node.module}.{name.name}".split(".")
                if parts[:2] == ["embae", package] and parts[2] != folder:
                    yield folder, parts[2], f"{path.relative_to(root(package))}:{node.lineno} imports {node.module}"


@pytest.mark.parametrize("package", LAYERS)
def test_a_folder_imports_only_those_before_it(package: str) -> None:
    layers = LAYERS[package]
    wrong = [line for folder, imported, line in arrows(package) if layers.index(imported) >= layers.index(folder)]
    assert not wrong, "\n".join(wrong)


PACKAGES = ("datasets", "trainer", "slurm")


def imports() -> dict[str, set[str]]:
    """Every module of embae → the modules of embae that it imports; lazy and type-only imports too."""
    paths = {path: ".".join(["embae", package, *path.relative_to(root(package)).with_suffix("").parts])
             for package in PACKAGES for path in root(package).rglob("*.py")}
    modules = {path: name.removesuffix(".__init__") for path, name in paths.items()}
    graph: dict[str, set[str]] = {}
    for path, module in modules.items():
        targets: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                targets |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        graph[module] = targets & set(modules.values()) - {f"embae.{package}" for package in PACKAGES}
    return graph


def test_no_module_imports_itself_through_others() -> None:
    TopologicalSorter(imports()).prepare()  # raises CycleError, which names the modules


def test_packages_stand_above_each_other() -> None:
    for module, targets in imports().items():
        package = module.split(".")[1]
        packages = {target.split(".")[1] for target in targets} - {package}
        if package == "datasets":
            assert not packages, module
        elif "slurm" in packages:
            assert module == "embae.trainer.commands.app"
        elif package == "slurm":
            assert targets <= {"embae.trainer.errors", "embae.trainer.recipe.load", "embae.slurm.script"}, module


@pytest.mark.parametrize("package", LAYERS)
def test_every_folder_states_its_purpose_and_holds_several_files(package: str) -> None:
    entries = [path for path in root(package).iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 20
    folders = [path for path in entries if path.is_dir()]
    assert {path.stem for path in entries} - {"__init__", "__main__", "py"} == set(LAYERS[package])
    for folder in folders:
        files = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
        assert len(files) > 1 and folder.name not in files, folder
        purpose = import_module(f"embae.{package}.{folder.name}").__doc__
        assert purpose and purpose.splitlines()[0].endswith("."), folder


def folder_table(package: str) -> str:
    """The folders as docs/architecture.md shows them: purpose, and what each imports of the same package."""
    imported: dict[str, set[str]] = {folder: set() for folder in LAYERS[package]}
    for folder, other, _ in arrows(package):
        imported[folder].add(other)
    rows = ["| folder | purpose | imports |", "| --- | --- | --- |"]
    for folder in LAYERS[package]:
        purpose = (import_module(f"embae.{package}.{folder}").__doc__ or "").split("\n")[0]
        name = f"{folder}/" if (root(package) / folder).is_dir() else f"{folder}.py"
        rows.append(
            f"| `{name}` | {purpose} | {', '.join(sorted(imported[folder], key=LAYERS[package].index)) or '–'} |"
        )
    return "\n".join(rows)


@pytest.mark.parametrize("package", LAYERS)
def test_the_architecture_page_shows_the_folders_as_they_are(package: str) -> None:
    page = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert folder_table(package) in page


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_the_pages_name_files_that_exist(page: str) -> None:
    checkout = Path(__file__).parent.parent
    named = re.findall(
        r"`((?:trainer|datasets|tests|recipes|docs|slurm)/[\w./-]+)`", (checkout / page).read_text(encoding="utf-8")
    )
    assert len(named) > 10 and not [path for path in named if not (checkout / path).exists()]
