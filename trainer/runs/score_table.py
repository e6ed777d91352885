"""The score table that a run ends with, and its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embae.datasets.console.tables import format_table, format_text
from embae.datasets.files.json_files import write_json
from embae.trainer.retrieval.ranking_options import PLAIN, RankingOptions

SHOWN = ("Rank-1", "Rank-5", "mAP", "mINP", "Rank-1-nd", "mAP-nd")


def score_table(dataset: str, tta: str, rows: Mapping[str, Mapping[str, Any]], refined: RankingOptions = PLAIN) -> str:
    """Rows × scores as text: what a person reads first after a run.

    Args:
        dataset: What was scored.
        tta: Test-time augmentation.
        rows: Scores by name of the row, as in ``evaluation/<dataset>.json``.
        refined: What was done to the ranking.
    """
    queries = next(iter(rows.values()))["queries"]
    head = f"{dataset}, {queries} queries, test-time augmentation: {tta}{refined.suffix}, mAP by trapezoid"
    cells = [[row, *(f"{scores[name]:.3f}" for name in SHOWN), "{:.3f} … {:.3f}".format(*scores["interval"]["Rank-1"])]
             for row, scores in rows.items()]
    return f"{format_text(head)}\n{format_table(['model', *SHOWN, 'Rank-1, 95 %'], cells, left=['model'])}"


def are_numbers(tree: Any) -> bool:
    """Whether a tree is a mapping of names to numbers."""
    return isinstance(tree, dict) and all(type(value) in (int, float) for value in tree.values())


def are_scores(tree: Any) -> bool:
    """Whether a tree has the scores of one row, as `score_table` and comparisons take them."""
    if not isinstance(tree, dict):
        return False
    intervals = tree.get("interval")
    plain = {name: value for name, value in tree.items() if name != "interval"}
    return (are_numbers(plain) and {*SHOWN, "queries"} <= plain.keys()
            and isinstance(intervals, dict) and "Rank-1" in intervals
            and all(isinstance(pair, list) and len(pair) == 2 and are_numbers(dict(enumerate(pair)))
                    for pair in intervals.values()))


def write_scores(path: Path, dataset: str, tta: str, rows: Mapping[str, Mapping[str, Any]],
                 refined: RankingOptions = PLAIN) -> None:
    """Writes ``{"dataset", "tta", "rerank", "expand", "rows": {row: scores}}`` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tree = {"dataset": dataset, "tta": tta, **asdict(refined), "rows": rows}
    write_json(path, tree)
