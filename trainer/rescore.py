"""Scores the models of a finished run on any dataset: ``embae evaluate``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from embae.datasets.errors import DataError
from embae.datasets.index import Index
from embae.datasets.progress import note
from embae.datasets.verification import check_rows
from embae.trainer.errors import RecipeError
from embae.trainer.preflight import can_score
from embae.trainer.recipe import load
from embae.trainer.schema import TTA
from embae.trainer.stage_folder import is_done
from embae.trainer.table import score_table, write_scores


def rescore(run: Path, dataset: str | None, tta: TTA | None, rerank: bool | None, to: Path | None) -> None:
    """Prints the score table of a run's rows, or of one export, on a dataset.

    Args:
        run: A run folder, or the export folder of a stage.
        dataset: A name below the recipe's ``data.root`` or the folder of a sharded dataset; None takes the target.
        tta: Test-time augmentation; None takes the recipe's.
        rerank: Whether to re-rank; None takes the recipe's.
        to: Where to write the scores as JSON.

    Raises:
        RecipeError: There is no run, or none of the stages to score is done.
        DataError: The dataset is missing, or has nothing to score.
    """
    exports, recipe = {}, None
    if os.path.isfile(run / "model.json"):  # not Path.is_file, which a name too long makes raise
        exports[run.resolve().parent.name] = run
    elif os.path.isfile(run / "recipe.yaml"):
        recipe = load(str(run / "recipe.yaml"))
        rows = recipe.evaluate or {recipe.run[-1]: recipe.run[-1]}
        exports = {row: run / stage / "export" for row, stage in rows.items() if is_done(run, stage)}
        if not exports:
            raise RecipeError(f"{run}: none of the stages {', '.join(rows.values())} is done; run embae train first")
        for row in rows.keys() - exports.keys():
            note(f"{row} is left out: its stage, {rows[row]}, is not done")
    else:
        raise RecipeError(f"{run}: neither a run folder (recipe.yaml) nor an export (model.json)")
    tta = tta or (recipe.scoring.tta if recipe else "flip")
    if rerank is None:
        rerank = recipe.scoring.rerank if recipe else False
    index = _dataset(dataset, recipe.data.root if recipe else None, recipe.data.target if recipe else None)
    check_rows(index)
    if not can_score(index):
        raise DataError(f"{index.root}: nothing to score; wanted labelled images in query, and a gallery")

    # And with it torch, which takes seconds: not before an error.
    from embae.trainer.distributed import broadcast_object, join, leave
    from embae.trainer.evaluate import Reading, evaluate
    from embae.trainer.export import Export
    reading = Reading(recipe.data.loader, recipe.data.threads, recipe.scoring.batch) if recipe else Reading()
    world = join()
    try:
        # Beside the models, which all ranks see, unless that may not be written to.
        other = None if os.access(run, os.W_OK) else tempfile.mkdtemp(prefix="embae-")
        folder = Path(broadcast_object(other) or run / "cache")
        scores = {}
        for row, export in exports.items():
            opened = Export.open(export)
            scores[row] = evaluate(opened.restore().to(world.device), index, opened.spec, tta, world, reading, folder,
                                   rerank=rerank)
    finally:
        leave()
    if world.first:
        if to:
            write_scores(to, index.name, tta, scores, rerank)
        print(score_table(index.name, tta, scores, rerank))


def _dataset(dataset: str | None, root: Path | None, target: str | None) -> Index:
    name = dataset or target
    if root is not None and name is not None and (os.path.isdir(root / name) or not os.path.isdir(name)):
        return Index.open(root / name)
    if dataset is None:
        raise DataError("which dataset? An export alone does not know where data lies; give --dataset FOLDER_OF_SHARDS")
    return Index.open(Path(dataset))
