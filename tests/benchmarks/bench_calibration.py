"""How many images a camera needs to be calibrated, and how long that takes.

    python tests/benchmarks/bench_calibration.py [--export EXPORT --shards SHARDS] [--draws 3] [--features]

Rank-1 and mAP on the drawn people's campus, without test-time augmentation, after `embae calibrate` on so many of each
camera's training images: means and deviations over draws of these, and the seconds that calibration took. The first
lines are the model as it is, and calibrated on all images; the last is the time of that, an image and a camera. Without
``--export``, the embedding of `baseline --settings quick` is trained first, in minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from embae.datasets.index.arrow_index import Index
from embae.datasets.sampling.keyed_random import generator
from embae.datasets.sampling.view import View
from embae.trainer.evaluation.evaluate import evaluate
from embae.trainer.inference.calibration import calibrate
from embae.trainer.inference.options import Inference, Reading
from embae.trainer.model.saved import SavedModel
from embae.trainer.recipe.calibration import Calibrate
from embae.trainer.recipe.load import load_recipe
from embae.trainer.runs.run_datasets import draw_synthetic
from embae.trainer.runtime.distributed import World, join, leave

COUNTS = [4, 8, 16, 32, 64, 128, 256]
READING = Reading(batch=128)


class Some(View):
    """Some of a dataset's training images.

    Args:
        index: The dataset.
        chosen: Rows of the whole view.
    """

    def __init__(self, index: Index, chosen: np.ndarray):
        super().__init__([index], "train")
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return super().locate(self._chosen[rows])

    def fingerprints(self) -> np.ndarray:
        return super().fingerprints()[self._chosen]


def drawn(index: Index, count: int, draw: int) -> Some:
    """So many images of each camera."""
    rng, camid = generator(draw, "bench", str(count)), index.camid[index.rows("train")]
    return Some(index, np.concatenate([rng.permutation(np.flatnonzero(camid == one))[:count]
                                       for one in np.unique(camid)]))


def scores(
    export: SavedModel, index: Index, view: View | None, features: bool, world: World, folder: Path
) -> np.ndarray:
    """Rank-1, mAP, and the seconds that calibration took."""
    model = export.restore(["backbone"] if features else None).to(world.device)
    inference, began = Inference(export.spec, world, folder, READING), time.perf_counter()
    if view:
        for what in ["batch-norm", "features"][:1 + features]:
            calibrate(model, Calibrate.model_validate({"what": what}), view, inference)
    took = time.perf_counter() - began
    found = evaluate(model, index, inference)
    return np.array([found["Rank-1"], found["mAP"], took])


def line(name: str, found: list[np.ndarray]) -> None:
    """Prints means and deviations over draws."""
    mean, spread = np.mean(found, 0), np.std(found, 0, ddof=len(found) > 1)
    print(f"{name:>6}  {mean[0]:.3f} ± {spread[0]:.3f}  {mean[1]:.3f} ± {spread[1]:.3f}  {mean[2]:8.2f}", flush=True)


def main() -> None:
    """Trains or opens the model, and measures."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--export", type=Path, help="a trained embedding's export")
    options.add_argument("--shards", type=Path, help="where campus is, or is drawn")
    options.add_argument("--draws", type=int, default=3)
    options.add_argument("--features", action="store_true", help="without the embedding, features standardised")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = [f"data.root={given.shards or folder / 'shards'}"]
        recipe, path = load_recipe("baseline", data, ["quick"]), given.export or folder / "run" / "embedding" / "export"
        draw_synthetic(recipe)
        if not given.export:
            subprocess.run(
                [
                    sys.executable,
                    "-c",
                    "from embae.trainer.commands.app import main; main()",
                    "train",
                    "baseline",
                    *data,
                    "--settings",
                    "quick",
                    "--nproc",
                    "1",
                    "--stage",
                    "embedding",
                    "--out",
                    str(path.parent.parent),
                ],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        index, world = Index.open((given.shards or folder / "shards") / "campus"), join()
        measure(SavedModel.open(path), index, given.features, world, folder, given.draws)
        leave()


def measure(export: SavedModel, index: Index, features: bool, world: World, folder: Path, draws: int) -> None:
    """Prints a line for each number of images, and the time."""
    whole = View([index], "train")
    print("images         Rank-1            mAP   seconds")
    line("none", [scores(export, index, None, features, world, folder)])
    line("all", [every := scores(export, index, whole, features, world, folder)])
    for count in COUNTS:
        line(str(count), [scores(export, index, drawn(index, count, draw), features, world, folder)
                          for draw in range(draws)])
    took, cameras = every[2], len(whole.cameras())
    print(f"{len(whole):,} images of {cameras} cameras: {1000 * took / len(whole):.1f} s per 1,000 images, "
          f"{took / cameras:.1f} s a camera")


if __name__ == "__main__":
    main()
