"""Small images of a dataset, embedded in the page."""

from __future__ import annotations

import base64
import io

from PIL import Image

from embae.datasets.errors import DataError
from embae.datasets.images.encoding import decode_jpeg
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.shard_reader import ShardReader, describe_row
from embae.trainer.report.markup import Markup, image, tag

HEIGHT, WIDTH = 112, 56  # pixels at most: a page of 120 of them has 0.4 MB
_QUALITY = 72


class Pictures:
    """Pictures of one dataset; each is read once."""

    def __init__(self, index: Index):
        self._index, self._reader = index, ShardReader(index)
        self._made: dict[int, tuple[str, int, int]] = {}

    def __call__(self, row: int, alt: str) -> Markup:
        """The picture of a row of the index; an empty box if it cannot be read."""
        if row not in self._made:
            try:
                self._made[row] = _encoded(decode_jpeg(self._reader.read(row), describe_row(self._index, row)))
            except (DataError, OSError):
                return tag("span", "not readable", class_="nopic")
        source, width, height = self._made[row]
        return image(source, alt, width, height)

    def close(self) -> None:
        """Closes the shards."""
        self._reader.close()


def _encoded(picture: Image.Image) -> tuple[str, int, int]:
    scale = min(HEIGHT / picture.height, WIDTH / picture.width)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    out = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(out, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode(), *size
