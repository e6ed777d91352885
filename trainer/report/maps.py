"""Maps of embeddings and nuisance in two dimensions (t-SNE), coloured by camera and by identity."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch

from embae.datasets.console.progress import note
from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.sampling.for_display import choose_for_display
from embae.datasets.sampling.keyed_random import generator
from embae.datasets.sampling.view import View
from embae.trainer.errors import WeightsError
from embae.trainer.inference.batches import read_batches
from embae.trainer.inference.options import Reading
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.heads import head_numbers
from embae.trainer.model.manifest import META
from embae.trainer.model.saved import SavedModel
from embae.trainer.report.charts import PALETTE, legend, scatter
from embae.trainer.report.evidence import rows_shown, unit
from embae.trainer.report.markup import Markup, section, tag
from embae.trainer.runs.summary import RunSummary

POINTS, IDENTITIES = 600, 40  # at most
_PERPLEXITY = 30
_BATCH = 128  # images


def maps(facts: RunSummary, index: Index | str) -> Markup:
    """Embeddings before and after adaptation, and nuisance codes of the last model that has them for these cameras."""
    title, rows = "Maps", rows_shown(facts)
    if isinstance(index, str) or not rows:
        return section("maps", title, tag("p", index if isinstance(index, str) else "No model is done yet.",
                                          class_="none"))
    splits = [split for split in ("query", "gallery") if index.count(split)] or ["train"]
    view = View([index], *splits)  # type: ignore[arg-type]
    chosen = choose_for_display(view, facts.recipe.seed, images=POINTS, identities=IDENTITIES)
    camera, pid = view.column("camid", chosen), view.column("pid", chosen)
    labelled = view.column("labelled", chosen).astype(bool).all()
    drawn: list[tuple[str, np.ndarray]] = []
    try:
        for name, codes in _codes(facts, rows, view, chosen):
            note(f"map of {name}: {len(codes)} images")
            points = project(codes, facts.recipe.seed)
            drawn.append((name, points))
    except (DataError, WeightsError, OSError) as error:
        return section("maps", title, tag("p", f"No maps: {error}", class_="none"))
    cameras = np.unique(camera)
    colours = [legend([f"camera {number}" for number in cameras])] if len(cameras) <= len(PALETTE) else []
    people = f" of {len(np.unique(pid))} identities" if labelled else ""
    caption = (
        f"t-SNE of {len(chosen)} images{people}, drawn by chance from {' and '.join(splits)}: the same images in "
        "every map. Distances across a map mean little; groups do. A good embedding has people in groups of their "
        "own and cameras mixed, a good nuisance the opposite."
    )
    return section("maps", title, tag("p", caption), *colours, _figures(drawn, "by camera", camera),
                   *([_figures(drawn, "by identity", pid)] if labelled else []))


def project(codes: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE of codes `(N, D)`: `(N, 2)`, the same for the same seed."""
    from sklearn.manifold import TSNE
    if len(codes) < 5:  # nothing to arrange
        return np.pad(codes[:, :2], ((0, 0), (0, max(0, 2 - codes.shape[1])))).astype(float)
    state = int(generator(seed, "report", "t-SNE").integers(2**31))
    perplexity = min(_PERPLEXITY, (len(codes) - 1) / 3)
    return TSNE(init="pca" if codes.shape[1] > 1 else "random", perplexity=perplexity, random_state=state,
                n_jobs=1).fit_transform(np.asarray(codes, np.float32)).astype(float)


def _codes(facts: RunSummary, rows: list[str], view: View, chosen: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Name of a map → codes of the chosen images: z of each row, then v."""
    recipe, nuisance = facts.recipe, None
    for row in rows:
        z, v = codes_of(SavedModel.open(facts.run / recipe.evaluate[row] / "export"), facts, view, chosen)
        yield f"{row}: embedding", unit(z)
        nuisance = (f"{row}: nuisance", v) if v is not None else nuisance
    if nuisance:
        yield nuisance


def codes_of(
    export: SavedModel, facts: RunSummary, view: View, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """z `(N, Z)` of rows of a view, and v `(N, V)` where a nuisance head serves every one of them.

    Raises:
        DataError: An image cannot be read.
        WeightsError: The weights cannot be used.
    """
    if not (export.path / META).is_file():
        raise WeightsError(f"{export.path}: no {META}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, data = export.restore().to(device), facts.recipe.data
    dataset, camid = view.locate(chosen)[0], view.column("camid", chosen)
    heads = _heads(model, view, dataset, camid)
    z, v, done = [], [], 0
    reading = Reading(data.loader, data.threads, _BATCH)
    with torch.inference_mode(), closing(read_batches(view, chosen, export.spec, reading, device)) as batches:
        for batch in batches:
            which = model.image_cameras(batch)
            features = model.extract(batch.inputs, which)
            z.append(model.embed(features, which).float().cpu().numpy())
            if heads is not None:
                batch_heads = heads[done:done + len(features)]
                v.append(model.nuisance(features, batch_heads, np.unique(batch_heads).tolist()).float().cpu().numpy())
            done += len(features)
    return np.concatenate(z), np.concatenate(v) if v else None


def _heads(model: EmbAE, view: View, dataset: np.ndarray, camid: np.ndarray) -> np.ndarray | None:
    """The nuisance head of each image; None where one of them has none."""
    if "nuisance" not in model.parts():
        return None
    labels = {(view.names[number], int(camera))[:len(model.heads[0])]
              for number, camera in zip(dataset, camid, strict=True)}
    return head_numbers(model.heads, view.names, dataset, camid) if labels <= set(model.heads) else None


def _figures(drawn: list[tuple[str, np.ndarray]], grouping: str, values: np.ndarray) -> Markup:
    """All maps side by side in one colouring."""
    groups = np.unique(values, return_inverse=True)[1]
    return tag("div", *(tag("figure", tag("figcaption", f"{name}, {grouping}"),
                            scatter(points, groups, label=f"{name}, {grouping}")) for name, points in drawn),
               class_="charts maps")
