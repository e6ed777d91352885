"""What using a trained model takes: extraction beside its loader and its model alone, and search in 100,000 images.

    python tests/benchmarks/bench_search.py [--images 100000] [--threads 2]

Extraction: drawn people (campus) at their stored size and at 128×64, MobileNetV2 with random weights, flip; images/s of
DALI alone, of the model alone (one batch again and again), of `extract_to` and of `load()` from encoded files. What
extraction can reach on one machine without a GPU is where the time of loader and model add up.

Search: random embeddings around 5,000 centres. Seconds to open the file, seconds to the first answer, then the median
of 50 queries' milliseconds. Beside it faiss, where it is installed (``pip install faiss-cpu``): an exact IndexFlatIP
mapped from disk, of the same vectors.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from embae.datasets.image_source import ImageSource
from embae.datasets.index.arrow_index import Index
from embae.datasets.loading.image_spec import ImageSpec
from embae.datasets.loading.view_reader import ViewReader
from embae.datasets.readers.read import read_records
from embae.datasets.sampling.view import View
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.write_shards import write_shards
from embae.trainer import load
from embae.trainer.deployment.extract import extract_to, model_key, origin
from embae.trainer.deployment.search import Search
from embae.trainer.deployment.vectors import Origin, Vectors, write_vectors
from embae.trainer.inference.batches import read_batches
from embae.trainer.inference.embeddings import views
from embae.trainer.inference.options import Inference, Reading
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.saved import write
from embae.trainer.recipe.model import Model
from embae.trainer.runtime.distributed import World

ALONE = World(0, 0, 1, torch.device("cpu"))


def seconds(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def extraction(folder: Path, threads: int) -> None:
    """Images a second of each way."""
    torch.set_num_threads(threads)
    reading = Reading(threads=threads)
    options = {"domain": "campus", "identities": "100", "cameras": "3", "images_per_camera": "4"}
    write_shards(
        "campus",
        read_records("synthetic", None, options),
        folder,
        source={"reader": "synthetic"},
        options=ShardOptions(workers=threads),
    )
    index = Index.open(folder / "campus")
    view, keys = View([index], "train", "query", "gallery"), Model(backbone="mobilenetv2_100")
    assert index.image
    for height, width in (index.image, (128, 64)):
        spec, rows = ImageSpec(height, width), np.arange(len(view))
        torch.manual_seed(0)
        model = EmbAE(keys, {"backbone": "frozen", "embedding": "frozen"}).eval()
        place = folder / f"{height}" / "export"
        place.mkdir(parents=True)
        write(place, model, model.state_dict(), keys=keys, spec=spec)

        def decoded(spec: ImageSpec = spec, rows: np.ndarray = rows) -> None:
            for _ in read_batches(view, rows, spec, reading, ALONE.device):
                pass

        images = torch.randn(256, 3, height, width).contiguous(memory_format=torch.channels_last)

        @torch.inference_mode()
        def computed(images: torch.Tensor = images, spec: ImageSpec = spec, model: EmbAE = model) -> None:
            for crop in views(images, spec, "flip"):
                model(crop)

        computed()
        alone = len(view) / seconds(decoded), 256 / statistics.median(seconds(computed) for _ in range(3))
        pointed = ImageSource.open(folder / "campus")
        made = origin(model_key(model, spec, "flip"), pointed, ("train", "query", "gallery"))
        out = folder / f"{height}.arrow"
        inference = Inference(spec, ALONE, folder, reading, "flip")
        whole = len(view) / seconds(lambda: extract_to(out, made, model, pointed, inference))  # noqa: B023
        reader, loaded = ViewReader(view), load(place, device="cpu")
        files = [folder / f"{row}.jpg" for row in range(256)]
        for file, data in zip(files, reader.read(np.arange(256)), strict=True):
            file.write_bytes(io.BytesIO(data).getvalue())
        own = 256 / seconds(lambda: loaded(files))  # noqa: B023
        bound = 1 / (1 / alone[0] + 1 / alone[1])
        print(f"{height}×{width}, {len(view)} images, {threads} threads: DALI alone {alone[0]:,.0f}/s, model alone "
              f"{alone[1]:,.0f}/s; extraction {whole:,.0f}/s ({whole / bound:.2f} of both one after the other), load() "
              f"of files {own:,.0f}/s", flush=True)


def search(folder: Path, images: int, width: int) -> None:
    """Time to open, to the first answer and to each."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((5000, width), dtype=np.float32)
    embeddings = centres[rng.integers(5000, size=images)] + rng.standard_normal((images, width), dtype=np.float32)
    queries = embeddings[rng.integers(images, size=50)] + 0.3 * rng.standard_normal((50, width), dtype=np.float32)
    path = folder / f"{width}.arrow"
    write_vectors(path, Origin("", "random", "", ["gallery"], ""), [(_Made(images), np.arange(images), embeddings)])  # type: ignore[arg-type]
    nothing = np.zeros(images, bool)
    began = time.perf_counter()
    through = Search(Vectors.open(path))
    opened = time.perf_counter() - began
    through.nearest(queries[0], 10, nothing)
    first = time.perf_counter() - began
    ways: dict[str, Callable[[np.ndarray], object]] = {
        "nearest": lambda query: through.nearest(query, 10, nothing),
        "expand 5": lambda query: through.nearest(through.expanded(query, 5, nothing), 10, nothing),
        "rerank": lambda query: through.reranked(query, 10, nothing),
    }
    if find_spec("faiss"):
        import faiss  # type: ignore[import-not-found]
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        flat = faiss.IndexFlatIP(width)
        flat.add(unit)
        faiss.write_index(flat, str(folder / "flat"))
        mapped = faiss.read_index(str(folder / "flat"), faiss.IO_FLAG_MMAP)
        ways["faiss, exact"] = lambda query: mapped.search(query[None] / np.linalg.norm(query), 10)
    took: dict[str, list[float]] = {way: [] for way in ways}
    for query in queries:  # alternated, since others may use the machine
        for way, ask in ways.items():
            took[way].append(seconds(lambda: ask(query)))  # noqa: B023
    each = ", ".join(f"{way} {1000 * statistics.median(times):.0f} ms" for way, times in took.items())
    print(f"{images:,} images of {width} numbers: opened in {opened:.2f} s, first answer after {first:.2f} s; {each}",
          flush=True)


class _Made:
    """What a file of embeddings needs to know of images that there are none of."""

    name = "random"

    def __init__(self, images: int):
        self.labelled, self.role = np.zeros(images, bool), np.zeros(images, np.int8)
        self.pid, self.camid = np.zeros(images, np.int64), np.zeros(images, np.int32)
        self.keys = pa.array([f"{number:06d}" for number in range(images)])


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--images", type=int, default=100_000)
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="embae-bench-search-") as folder:
        for width in (128, 1280):
            search(Path(folder), given.images, width)
        extraction(Path(folder), given.threads)


if __name__ == "__main__":
    main()
