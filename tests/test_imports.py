"""Rules that hold over all source files, read from their syntax, and what a login node may import."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest


@cache
def sources(package: str) -> dict[str, ast.Module]:
    """Syntax of a package's files by their module's name."""
    spec = importlib.util.find_spec(package)
    assert spec and spec.submodule_search_locations
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    files = {path: ".".join([package, *path.relative_to(root).with_suffix("").parts]) for path in root.rglob("*.py")}
    return {name: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path, name in files.items()}


def everything() -> dict[str, ast.Module]:
    return {**sources("embae.datasets"), **sources("embae.trainer"), **sources("embae.slurm")}


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Dotted names of what a file calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def importers(package: str) -> list[str]:
    return sorted(
        name
        for name, tree in everything().items()
        if any(f"{found}.".startswith(f"{package}.") for found in imports(tree))
    )


def test_there_is_something_to_look_at() -> None:
    assert len(everything()) > 50


@pytest.mark.parametrize(
    "package, module",
    [("nvidia", "embae.datasets.loading.dali_loader"), ("deepspeed", "embae.trainer.training.engine")],
)
def test_heavy_packages_are_imported_in_one_file(package: str, module: str) -> None:
    assert importers(package) == [module]


def test_datasets_never_import_the_trainer() -> None:
    wrong = [name for name in importers("embae.trainer") if name.startswith("embae.datasets")]
    assert not wrong


def test_jobs_are_the_command_lines_alone() -> None:
    """What trains does not know what it runs under."""
    others = [name for name in importers("embae.slurm") if not name.startswith("embae.slurm.")]
    assert others == ["embae.trainer.commands.app"]


def test_a_file_for_spawning_holds_one_call() -> None:
    tree = sources("embae.trainer")["embae.trainer.__main__"]
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


GLOBAL = (
    "np.random.",
    "numpy.random.",
    "random.",
    "torch.manual_seed",
    "torch.seed",
    "torch.cuda.manual_seed",
    "torch.rand",
    "torch.normal",
    "torch.bernoulli",
    "torch.multinomial",
)
OWN = (
    "np.random.Generator",
    "np.random.Philox",
    "np.random.SeedSequence",
    "np.random.default_rng",
    "np.random.PCG64",
    "random.Random",
)


def test_no_global_random_numbers() -> None:
    """What is drawn is a function of (seed, stage, step, slot); the one exception is shut in by fork_rng."""
    wrong = []
    for name, tree in everything().items():
        forked = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.With) and any("fork_rng" in ast.unparse(item.context_expr) for item in node.items)
            for inner in ast.walk(node)
        }
        wrong += [
            f"{name}:{node.lineno} {called}"
            for called, node in calls(tree)
            if called.startswith(GLOBAL)
            and called not in (*OWN, "torch.random.fork_rng")
            and node not in forked
            and not any(keyword.arg == "generator" for keyword in node.keywords)
        ]
    assert not wrong


def test_nothing_runs_what_it_reads() -> None:
    wrong = []
    for name, tree in everything().items():
        wrong += [
            f"{name}: imports {found}"
            for found in imports(tree)
            if found.split(".")[0] in ("pickle", "marshal", "shelve", "dill", "joblib") or found == "os.system"
        ]
        for called, node in calls(tree):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if (
                called
                in (
                    "eval",
                    "exec",
                    "compile",
                    "__import__",
                    "os.system",
                    "os.popen",
                    "yaml.unsafe_load",
                    "yaml.full_load",
                )
                or (called == "yaml.load" and keywords.get("Loader") != "PlainLoader")
                or (called == "torch.load" and keywords.get("weights_only") != "True")
                or (called == "np.load" and keywords.get("allow_pickle", "False") != "False")
                or keywords.get("shell", "False") != "False"
            ):
                wrong.append(f"{name}:{node.lineno} {ast.unparse(node)}")
    assert not wrong


def test_yaml_loader_is_safe() -> None:
    import yaml

    from embae.datasets.files.yaml_files import PlainLoader

    assert issubclass(PlainLoader, yaml.SafeLoader)


LIGHT = [
    "embae.trainer.recipe.load",
    "embae.trainer.recipe.schema",
    "embae.trainer.runs.preflight",
    "embae.trainer.runs.folder",
    "embae.trainer.commands.app",
    "embae.trainer.runtime.launch",
    "embae.trainer.recipe.json_schema",
    "embae.trainer.training.schedule",
    "embae.trainer.runs.score_table",
    "embae.slurm.command",
    "embae.datasets.index.arrow_index",
    "embae.datasets.sampling.pk_sampler",
    "embae.datasets.sampling.view",
    "embae.datasets.loading.augment",
    "embae.datasets.loading.batch",
    "embae.datasets.readers.registry",
    "embae.datasets.readers.read",
    "embae.datasets.sharding.write_shards",
]
HEAVY = ["torch", "torchvision", "timm", "deepspeed", "nvidia.dali", "tensorboard"]


def test_what_a_login_node_needs_imports_nothing_heavy() -> None:
    code = f"import sys, {', '.join(LIGHT)}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
