"""How images go through a model: one value for everything that embeds, scores, searches or calibrates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embae.datasets.loading.image_spec import ImageSpec
from embae.datasets.loading.open_loader import LoaderName
from embae.trainer.model.saved import SavedModel
from embae.trainer.recipe.schema import Recipe
from embae.trainer.recipe.scoring import TTA, Scoring
from embae.trainer.runtime.distributed import World


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
        loader: The loader that decodes them.
        threads: Decoding threads; None lets the loader choose.
        batch: Images in a batch.
    """

    loader: LoaderName = "dali"
    threads: int | None = None
    batch: int = 256

    @classmethod
    def of_recipe(cls, recipe: Recipe | None, batch: int | None = None) -> Reading:
        """How a run reads images for scoring; the defaults where there is no recipe.

        Args:
            recipe: The run's recipe; None for an export alone.
            batch: Images in a batch; None takes the recipe's ``scoring.batch``.
        """
        batch = batch or (recipe.scoring if recipe else Scoring()).batch
        return cls(recipe.data.loader, recipe.data.threads, batch) if recipe else cls(batch=batch)


@dataclass(frozen=True)
class Inference:
    """How images go through a model, and on which ranks. Use `dataclasses.replace` for variations.

    Attributes:
        spec: The model's input.
        world: This rank.
        cache: Folder for intermediate arrays, on a file system that all ranks see; created when needed.
        reading: How images are read.
        tta: Test-time augmentation.
    """

    spec: ImageSpec
    world: World
    cache: Path
    reading: Reading = Reading()
    tta: TTA = "none"

    @classmethod
    def of_recipe(cls, recipe: Recipe, world: World, cache: Path, *, tta: TTA | None = None,
                  batch: int | None = None) -> Inference:
        """Inference as a recipe describes it.

        Args:
            recipe: The run's recipe.
            world: This rank.
            cache: Folder for intermediate arrays.
            tta: Test-time augmentation; None takes the recipe's ``scoring.tta``.
            batch: Images in a batch; None takes the recipe's ``scoring.batch``.
        """
        return cls(recipe.data.spec, world, cache, Reading.of_recipe(recipe, batch), tta or recipe.scoring.tta)

    @classmethod
    def of_export(cls, export: SavedModel, recipe: Recipe | None, world: World, cache: Path, *,
                  tta: TTA = "none") -> Inference:
        """Inference with a saved model's input, which may differ from that of the recipe.

        Args:
            export: The model on disk.
            recipe: The recipe of its run, which says how images are read; None for an export alone.
            world: This rank.
            cache: Folder for intermediate arrays.
            tta: Test-time augmentation.
        """
        return cls(export.spec, world, cache, Reading.of_recipe(recipe), tta)
