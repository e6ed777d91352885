"""Embeddings for TensorBoard's projector: points that can be turned, and coloured by camera or person.

    tensorboard/<stage>/projector_config.pbtxt              lists the files
    tensorboard/<stage>/projector/<dataset>.tsv             embeddings of unit length, a line each
    tensorboard/<stage>/projector/<dataset>-metadata.tsv    pid, camid, key, split and dataset, below a header
    tensorboard/<stage>/projector/<dataset>-images.jpg      the images, small, in rows that form a square

They show a sample: all images of some people. Twice as many points would show no more, and would take TensorBoard twice
as long to load.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from embae.datasets.files.atomic import write_bytes, write_text
from embae.datasets.images.encoding import decode_jpeg
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.shard_reader import ShardReader, describe_row
from embae.datasets.sampling.for_display import choose_for_display
from embae.datasets.sampling.view import View

POINTS, IDENTITIES = 2000, 200  # at most
SIDE = 64
"""Pixels of a small image, which the projector draws as a square. 45 × 45 images stay far below the 8,192 pixels that a
browser can show."""
_COLUMNS = ("pid", "camid", "key", "split", "dataset")  # the projector labels points by the first column of words


def write_projector(folder: Path, index: Index, query: np.ndarray, gallery: np.ndarray, seed: int) -> None:
    """Writes the files by which the projector shows a sample of a scored dataset.

    Args:
        folder: The log folder of the stage.
        index: The dataset.
        query: `(Q, Z)` raw embeddings, in the order of the index.
        gallery: `(N, Z)` raw embeddings, in the order of the index.
        seed: Seed of the sample.

    Raises:
        DataError: An image cannot be read.
    """
    view = View([index], "query", "gallery")
    chosen = choose_for_display(view, seed, images=POINTS, identities=IDENTITIES)
    embeddings = np.stack([query[row] if row < len(query) else gallery[row - len(query)] for row in chosen])
    embeddings = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    rows = view.locate(chosen)[1]
    subfolder = folder / "projector"
    subfolder.mkdir(parents=True, exist_ok=True)
    files = {"tensors": (".tsv", _lines(embeddings)), "images": ("-images.jpg", _sprite(index, rows)),
             "metadata": ("-metadata.tsv", _metadata(index, rows, chosen < len(query)))}
    for end, content in files.values():
        write_bytes(subfolder / f"{index.name}{end}", content)
    path = {key: json.dumps(f"projector/{index.name}{end}") for key, (end, _) in files.items()}
    config = (f"embeddings {{\n  tensor_name: {json.dumps(index.name)}\n"
              f"  tensor_shape: {embeddings.shape[0]}\n  tensor_shape: {embeddings.shape[1]}\n"
              f"  tensor_path: {path['tensors']}\n  metadata_path: {path['metadata']}\n"
              f"  sprite {{\n    image_path: {path['images']}\n"
              f"    single_image_dim: {SIDE}\n    single_image_dim: {SIDE}\n  }}\n}}\n")
    write_text(folder / "projector_config.pbtxt", config)


def _lines(embeddings: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savetxt(out, embeddings, fmt="%.4g", delimiter="\t")
    return out.getvalue()


def _metadata(index: Index, rows: np.ndarray, is_query: np.ndarray) -> bytes:
    lines = ["\t".join(_COLUMNS)]
    for row, query in zip(rows.tolist(), is_query.tolist(), strict=True):
        pid = str(int(index.pid[row])) if index.labelled[row] else "unknown"
        key = " ".join(index.key(row).split())  # a tab would start another column
        lines.append("\t".join([pid, str(int(index.camid[row])), key, "query" if query else "gallery", index.name]))
    return ("\n".join(lines) + "\n").encode()


def _sprite(index: Index, rows: np.ndarray) -> bytes:
    side = math.ceil(math.sqrt(len(rows)))
    sheet = Image.new("RGB", (side * SIDE, side * SIDE), "white")
    with ShardReader(index) as reader:
        for number, row in enumerate(rows.tolist()):
            picture = ImageOps.pad(decode_jpeg(reader.read(row), describe_row(index, row)), (SIDE, SIDE), color="white")
            sheet.paste(picture, (number % side * SIDE, number // side * SIDE))
    out = io.BytesIO()
    sheet.save(out, "JPEG", quality=85)
    return out.getvalue()
