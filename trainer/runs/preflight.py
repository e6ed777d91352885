"""All that can be known before a process group or a GPU is touched: on a login node, in a moment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from embae.datasets.console.progress import note
from embae.datasets.errors import DataError
from embae.datasets.index.records import Split
from embae.datasets.inspection.verification import check_rows
from embae.datasets.remote.url import Url
from embae.datasets.sampling.view import View
from embae.trainer.errors import WeightsError
from embae.trainer.model.manifest import META, WEIGHTS, check_weights, named, read_description
from embae.trainer.recipe.schema import Recipe
from embae.trainer.recipe.stage import Stage
from embae.trainer.runs.stage_data import _open, invented, open_all, open_stage, open_view, scores_target
from embae.trainer.runs.stage_folder import is_done


def check_inits(recipe: Recipe, run: Path | None = None) -> None:
    """Checks that what the stages start from exists, and is whole as far as that can be told without reading it all.

    Args:
        recipe: Checked.
        run: The run folder; what stages that are done in it started from may be gone.

    Raises:
        ExportError: Naming the key.
    """
    for name in recipe.run:
        init, path = recipe.stages[name].init, Path(recipe.stages[name].init)
        if init in ("hub", "random", *recipe.run) or (run and is_done(run, name)):
            continue
        if os.path.isfile(path):  # not Path.is_file, which a name too long makes raise
            with named(f"stages.{name}.init"):
                if path.suffix == ".safetensors":
                    check_weights(path)
            continue
        wanted = ("wanted hub, random, a weights file (.safetensors, .pth), the folder <run>/<stage> of another run, "
                  f"or an earlier stage ({', '.join(recipe.run)})")
        if not os.path.isdir(path):
            raise WeightsError(f"stages.{name}.init: {init} does not exist; {wanted}")
        exports = [folder for folder in (path, path / "export") if (folder / META).is_file()]
        if not exports:
            raise WeightsError(f"stages.{name}.init: the folder {init} holds no export; {wanted}")
        with named(f"stages.{name}.init"):
            read_description(exports[0])
            check_weights(exports[0] / WEIGHTS)


def check(recipe: Recipe, world_size: int, run: Path | None = None) -> None:
    """Opens every stage's data, and the target's, and looks at every row of their indexes.

    Args:
        recipe: Checked.
        world_size: Number of ranks.
        run: As for `check_inits`.

    Raises:
        DataError: Naming the stages or datasets and what is wrong.
        ExportError: What a stage's ``init`` points at does not exist.
    """
    check_inits(recipe, run)
    wrong: list[str] = []
    told = False
    heads: dict[str, set[tuple[str, int]]] = {}
    bad = set()
    for dataset in _read_by(recipe):
        try:
            for index in open_all(recipe, [dataset]):
                check_rows(index)
        except DataError as error:
            wrong.append(str(error))
            bad.add(dataset)
    for name in recipe.run:
        stage = recipe.stages[name]
        if bad.intersection(recipe.datasets(stage)):
            continue
        try:
            if not stage.loss:
                view = open_view(recipe, name)
            else:
                labels = invented(recipe, stage) if stage.data.labels else None
                view = (sampler := open_stage(recipe, name, labels=labels)).view
                wrong += _too_small(stage, name, sampler.batch, world_size)
        except DataError as error:
            wrong.append(str(error))
            continue
        if cluster := stage.cluster:
            wrong += [f"stages.{name}.cluster.{cluster.key}.{line}" for line in cluster.method.mistakes(len(view))]
        wrong += _without_head(recipe, name, view.cameras(), heads)
        if by_camera(recipe, stage) and len(view.cameras()) == 1 and not told:
            note(f"{view.names[0]} states one camera only: what is done camera by camera is done once for all of it; "
                 "if it has several, say which: by a folder for each, or a pattern or column for camid")
            told = True
        _tell_small_cache(recipe, name, view)
    if recipe.data.target in set(_read_by(recipe)) - bad:
        try:
            target = _open(recipe, recipe.data.target)  # one dataset: it is adapted to and scored as such
            splits: tuple[Split, ...] = ("query", "gallery")
            if recipe.evaluate and any(target.count(split) for split in splits):
                for split in splits:
                    View([target], split)
        except DataError as error:
            wrong.append(str(error))
    if wrong:
        raise DataError("\n".join(dict.fromkeys(wrong)))  # stages share mistakes


def _tell_small_cache(recipe: Recipe, name: str, view: View) -> None:
    """Says where a stage will fetch the same shards over and over."""
    data, root = recipe.stages[name].data, recipe.data.root
    if not isinstance(root, Url) or data.window:
        return
    size = sum(int(index.size[index.rows("train")].sum()) for index in view.indexes)
    if size > root.cache.most:
        remedy = f"set stages.{name}.data.window, or let it" if data.labelled and not data.labels else "let it"
        note(f"stage {name} reads {size / 2**30:.1f} GiB in any order, and data.cache may hold "
             f"{recipe.data.cache.gib:g} GiB of it, so that shards are fetched again and again; {remedy} hold all")


def by_camera(recipe: Recipe, stage: Stage) -> bool:
    """Whether a stage tells the target's cameras apart."""
    if stage.calibrate:
        return stage.calibrate.per == "camera"
    if (stage.loss and stage.loss.proxies) or (stage.cluster and stage.cluster.method.by_camera):
        return True
    if stage.data.from_ == "target" and stage.normalised("camera"):
        return True
    return stage.data.from_ == "target" and recipe.model.nuisance.per == "camera" and stage.use("nuisance") != "absent"


def _too_small(stage: Stage, name: str, batch: int, world_size: int) -> Iterator[str]:
    if isinstance(stage.data.P, dict) and stage.data.K:
        batch = min(stage.data.P.values()) * stage.data.K
    if batch < world_size * stage.accumulate:
        among = f"{world_size} rank{'s' * (world_size > 1)}"
        among += f" × {stage.accumulate} parts" if stage.accumulate > 1 else ""
        yield (f"stages.{name}.data: a global batch of {batch} images cannot be shared by {among}; set a larger batch, "
               "or start fewer ranks with --nproc")


def _without_head(recipe: Recipe, name: str, cameras: Sequence[tuple[str, int]],
                  heads: dict[str, set[tuple[str, int]]]) -> Iterator[str]:
    """A stage whose images no nuisance head of its ``init`` serves; adds the stage's own to `heads`."""
    stage, per = recipe.stages[name], recipe.model.nuisance.per
    if stage.use("nuisance") == "absent" or per == "shared":
        return
    needs = {(dataset, camid if per == "camera" else 0) for dataset, camid in cameras}
    has = heads.get(stage.init) if "nuisance" not in stage.reinit else None
    heads[name] = needs if has is None else has
    if not stage.loss:
        return  # it carries the heads along and uses none
    missing = sorted(needs - heads[name])
    heads[name] = heads[name] | needs  # told once, not again for the stages that follow
    if missing:
        said = [f"camera {camid} of {dataset}" if per == "camera" else dataset for dataset, camid in missing]
        some = ", ".join(said[:5]) + ", …" * (len(said) > 5)
        yield (f"stages.{name}.init: {stage.init} has no nuisance head for {some}; let the heads start afresh with "
               "reinit: [nuisance]")


def _read_by(recipe: Recipe) -> list[str]:
    """The datasets that a run reads."""
    found = [dataset for name in recipe.run for dataset in recipe.datasets(recipe.stages[name])]
    return list(dict.fromkeys([*found, *([recipe.data.target] if scores_target(recipe) else [])]))
