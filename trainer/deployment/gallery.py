"""The gallery of a search: embeddings of its images, and the images themselves."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from embae.datasets.errors import DataError
from embae.datasets.image_source import ImageSource
from embae.datasets.index.records import SPLITS
from embae.datasets.remote.url import parse_location
from embae.trainer.deployment.vectors import Vectors
from embae.trainer.runs.trained_model import TrainedModel

if TYPE_CHECKING:
    from PIL import Image

    from embae.trainer.deployment.load import Loaded


class Gallery:
    """The images that a search ranks.

    Args:
        vectors: Their embeddings.
        source: The dataset or merged set that they belong to; None opens the one that `vectors` names, if it is needed.

    Attributes:
        vectors: Their embeddings.
    """

    def __init__(self, vectors: Vectors, source: ImageSource | None = None):
        self.vectors, self._source = vectors, source

    @cached_property
    def source(self) -> ImageSource:
        """The dataset or merged set that the images belong to.

        Raises:
            DataError: It is missing, or its images have changed since they were extracted.
        """
        if self._source:
            return self._source
        source = ImageSource.open(parse_location(self.vectors.origin.root))
        if source.fingerprint != self.vectors.origin.fingerprint:
            raise DataError(f"{source.root}: its images have changed since their embeddings were extracted; run "
                            "embae extract again")
        return source

    def read_image(self, dataset: str, row: int) -> Image.Image:
        """Decodes the image of a row of a dataset's index.

        Raises:
            DataError: It cannot be read.
        """
        from embae.datasets.images.encoding import decode_jpeg
        from embae.datasets.index.shard_reader import ShardReader, describe_row
        index = next(index for index in self.source.indexes if index.name == dataset)
        with ShardReader(index) as reader:
            return decode_jpeg(reader.read(row), describe_row(index, row))


def open_gallery(path: Path, trained: TrainedModel, model: Loaded) -> Gallery:
    """Opens a file of embeddings that ``embae extract`` has written.

    Raises:
        DataError: It is damaged, or its embeddings belong to another model or test-time augmentation.
    """
    vectors = Vectors.open(path)
    if vectors.origin.model != model.key or vectors.width != model.width:
        raise DataError(f"{path}: embeddings of another model or another test-time augmentation than {model.tta}; "
                        f"compute them with embae extract {trained.run} {vectors.origin.root} -o {path}")
    return Gallery(vectors)


def extract_gallery(source: ImageSource, trained: TrainedModel, model: Loaded, cache: Path) -> Gallery:
    """Computes the embeddings of a gallery, unless an earlier search has done so.

    Args:
        source: The dataset or merged set; its split ``gallery`` is searched, or all splits if that is empty.
        trained: Where the model is.
        model: The model.
        cache: Folder that stores the embeddings.

    Raises:
        DataError: An image cannot be read.
    """
    import torch

    from embae.trainer.deployment.extract import extract_to, origin
    from embae.trainer.inference.options import Inference, Reading
    from embae.trainer.runtime.distributed import World
    contents = origin(model.key, source, ("gallery",) if source.count("gallery") else SPLITS)
    path = cache / f"search-{model.key[:8]}-{source.name}-{source.fingerprint[:8]}-{'-'.join(contents.splits)}.arrow"
    world = World(0, 0, 1, torch.device(model.device))
    inference = Inference(model.spec, world, cache, Reading.of_recipe(trained.recipe), model.tta)
    extract_to(path, contents, model.net, source, inference)
    return Gallery(Vectors.open(path), source)
