"""Notes about a run that can start, but may not do what its recipe seems to say."""

from __future__ import annotations

from collections.abc import Mapping

from embae.datasets.console.progress import note
from embae.datasets.remote.url import Url
from embae.datasets.sampling.view import View
from embae.trainer.recipe.schema import Recipe
from embae.trainer.recipe.stage import Stage


def note_single_camera(recipe: Recipe, views: Mapping[str, View]) -> None:
    """Notes, once, that a stage works camera by camera on a target which states one camera only."""
    for name, view in views.items():
        if _by_camera(recipe, recipe.stages[name]) and len(view.cameras()) == 1:
            note(f"{view.names[0]} states one camera only, so what is done camera by camera is done once for all "
                 "images; if it has several cameras, name them by a folder for each, or a pattern or column for camid")
            return


def note_small_cache(recipe: Recipe, views: Mapping[str, View]) -> None:
    """Notes each stage that would fetch the same remote shards repeatedly, since the cache is smaller than its data."""
    root = recipe.data.root
    if not isinstance(root, Url):
        return
    for name, view in views.items():
        data = recipe.stages[name].data
        size = sum(int(index.size[index.rows("train")].sum()) for index in view.indexes)
        if data.window or size <= root.cache.max_bytes:
            continue
        window = f"set stages.{name}.data.window, or " if data.labelled and not data.labels else ""
        note(f"stage {name} reads {size / 2**30:.1f} GiB in random order, but data.cache may store only "
             f"{recipe.data.cache.gib:g} GiB of it, so shards are fetched repeatedly; {window}enlarge data.cache.gib "
             "to store all of them")


def _by_camera(recipe: Recipe, stage: Stage) -> bool:
    """Whether a stage distinguishes the target's cameras."""
    if stage.calibrate:
        return stage.calibrate.per == "camera"
    if (stage.loss and stage.loss.by_camera) or (stage.cluster and stage.cluster.method.by_camera):
        return True
    if stage.data.from_ == "target" and stage.normalised("camera"):
        return True
    return stage.data.from_ == "target" and recipe.model.nuisance.per == "camera" and stage.use("nuisance") != "absent"
