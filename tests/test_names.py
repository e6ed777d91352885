"""Names: a local name says what it holds, and private names stay in their module."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TypeGuard

import pytest

EMPTY = {"found", "told", "said", "asked", "own", "known", "given", "wanted", "made", "kept", "taken"}
"""They say that there is a thing, and not what it is."""

# How many are left, by file: to be taken away, never to be added to.
LEFT: dict[str, int] = {
    "datasets/image_source.py": 9,
    "datasets/inspection/contact_sheet.py": 2,
    "datasets/inspection/verification.py": 4,
    "datasets/merging/duplicates.py": 2,
    "datasets/merging/merge.py": 2,
    "datasets/merging/perceptual_hash.py": 1,
    "datasets/sharding/index.py": 2,
    "datasets/sharding/write_shards.py": 5,
    "datasets/sharding/writer.py": 3,
    "datasets/synthetic/camera.py": 1,
    "trainer/clustering/average_linkage.py": 3,
    "trainer/clustering/camera_jaccard.py": 2,
    "trainer/clustering/linkage.py": 1,
    "trainer/comparison/compare.py": 5,
    "trainer/comparison/results.py": 7,
    "trainer/comparison/table.py": 2,
    "trainer/deployment/calibrate_export.py": 1,
    "trainer/deployment/extract.py": 5,
    "trainer/deployment/load.py": 2,
    "trainer/deployment/model_card.py": 2,
    "trainer/deployment/search.py": 4,
    "trainer/deployment/vectors.py": 3,
    "trainer/evaluation/evaluate.py": 3,
    "trainer/evaluation/probes.py": 7,
    "trainer/inference/calibration.py": 6,
    "trainer/inference/embeddings.py": 4,
    "trainer/inference/features.py": 1,
    "trainer/model/backbone.py": 6,
    "trainer/model/camera_batch_norm.py": 1,
    "trainer/model/camera_tables.py": 2,
    "trainer/model/embae.py": 3,
    "trainer/model/heads.py": 1,
    "trainer/model/known_cameras.py": 7,
    "trainer/model/manifest.py": 1,
    "trainer/model/norm_statistics.py": 2,
    "trainer/model/saved.py": 7,
    "trainer/performance/bench.py": 4,
    "trainer/performance/bench_report.py": 7,
    "trainer/performance/dry_run.py": 4,
    "trainer/performance/estimate.py": 4,
    "trainer/report/camera_pairs.py": 3,
    "trainer/report/charts.py": 2,
    "trainer/report/curves.py": 2,
    "trainer/report/distances.py": 4,
    "trainer/report/evidence.py": 7,
    "trainer/report/identities.py": 4,
    "trainer/report/loops.py": 3,
    "trainer/report/maps.py": 4,
    "trainer/report/markup.py": 2,
    "trainer/report/overview.py": 3,
    "trainer/report/page.py": 1,
    "trainer/report/ranked.py": 6,
    "trainer/report/records.py": 3,
    "trainer/report/stages.py": 7,
    "trainer/retrieval/expansion.py": 3,
    "trainer/retrieval/fixed_point.py": 1,
    "trainer/retrieval/jaccard.py": 6,
    "trainer/retrieval/neighbours.py": 5,
    "trainer/retrieval/ranking.py": 9,
    "trainer/retrieval/ranking_options.py": 3,
    "trainer/retrieval/rerank.py": 8,
    "trainer/retrieval/scores.py": 3,
    "trainer/training/checkpoint.py": 5,
    "trainer/training/initial_model.py": 4,
    "trainer/training/optimizer_state.py": 3,
    "trainer/training/stage.py": 2,
}
TESTS = Path(__file__).parent


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package in ("datasets", "trainer", "slurm"):
        root = Path(str(resources.files(f"embae.{package}")))
        for path in sorted(root.rglob("*.py")):
            name = f"{package}/{path.relative_to(root).as_posix()}"
            yield name, ast.parse(path.read_text(encoding="utf-8"), name)


def bound_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Names that a module gives to values: variables, loop variables, parameters, imports under another name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, 0


def test_no_name_is_empty() -> None:
    wrong = {name: [f"{line}: {bound}" for bound, line in bound_names(tree) if bound in EMPTY]
             for name, tree in modules()}
    more = {name: lines for name, lines in wrong.items() if len(lines) > LEFT.get(name, 0)}
    assert not more, more


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
    assert not {name: lines for name, lines in wrong.items() if len(lines) > IMPORTS_LEFT.get(name, 0)}


IMPORTS_LEFT = {"datasets/merging/merge.py": 4}
PRIVATE_LEFT: dict[str, int] = {
    "benchmarks/bench_adaptation.py": 8,
    "benchmarks/bench_batchnorm.py": 2,
    "datasets/readers/test_luperson.py": 2,
    "datasets/remote/test_url.py": 1,
    "datasets/sharding/test_join.py": 7,
    "datasets/sharding/test_write_shards.py": 2,
    "test_docs.py": 1,
    "trainer/evaluation/test_probes.py": 1,
    "trainer/losses/test_cluster_memory.py": 1,
    "trainer/model/test_batch_norm.py": 1,
    "trainer/performance/test_bench.py": 2,
    "trainer/performance/test_estimate.py": 9,
    "trainer/retrieval/test_jaccard.py": 5,
    "trainer/retrieval/test_rerank.py": 1,
    "trainer/retrieval/test_scores.py": 2,
    "trainer/runtime/test_launch.py": 2,
    "trainer/training/test_bad_luck.py": 2,
    "trainer/training/test_checkpoint.py": 6,
    "trainer/training/test_engine.py": 2,
    "trainer/training/test_on_gpu.py": 1,
    "trainer/training/test_resume.py": 10,
    "trainer/training/test_weight_average.py": 2,
}


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
    uses = Counter(private_uses(ast.parse(path.read_text(encoding="utf-8"))))
    name = path.relative_to(TESTS).as_posix()
    assert sum(uses.values()) <= PRIVATE_LEFT.get(name, 0), list(uses)
