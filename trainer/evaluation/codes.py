"""What a model's codes hold, measured on the target's training images: the numbers behind `probes.py`.

Labels of the target are looked at here, after all training, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from embae.datasets.sampling.view import View
from embae.trainer.evaluation.probes import error_by_camera, linear_probe, moved
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.heads import head_numbers

CHUNK = 4096  # images at a time


@dataclass(frozen=True)
class Codes:
    """Codes of a view's images.

    Attributes:
        z: `(N, Z)` embeddings.
        v: `(N, V)` nuisance; None for a model without a nuisance head for these images.
        error: `(N,)` squared error of the rebuilt features, their mean; None without a decoder.
    """

    z: np.ndarray
    v: np.ndarray | None = None
    error: np.ndarray | None = None


@torch.inference_mode()
def codes(model: EmbAE, view: View, features: np.ndarray, device: torch.device,
          standard: tuple[torch.Tensor, torch.Tensor] | None = None) -> Codes:
    """Codes of a view's images from their features.

    Args:
        model: In eval mode, on the device.
        view: The images.
        features: `(N, F)`, may be memory-mapped.
        device: Where to compute.
        standard: Mean and deviation of the features, where the decoder rebuilds standardised ones.
    """
    rows = np.arange(len(view))
    dataset, camid = view.locate(rows)[0], view.column("camid", rows)
    which = model.row_cameras(view, rows)
    served = "nuisance" in model.parts() and (
        model.heads[0] == () or {camera[:len(model.heads[0])] for camera in view.cameras()} <= set(model.heads))
    heads = head_numbers(model.heads, view.names, dataset, camid) if served else None
    z, v, errors = [], [], []
    for start in range(0, len(view), CHUNK):
        chunk = slice(start, start + CHUNK)
        x = torch.from_numpy(np.array(features[chunk])).to(device)
        found = model.embed(x, None if which is None else torch.from_numpy(which[chunk]).to(device))
        z.append(found.float().cpu())
        if heads is not None:
            nuisance = model.nuisance(x, heads[chunk], np.unique(heads[chunk]).tolist())
            v.append(nuisance.float().cpu())
            found = torch.cat([found, nuisance], 1)
        if "decoder" in model.parts() and (heads is not None or "nuisance" not in model.parts()):
            target = x if standard is None else (x - standard[0]) / standard[1]
            errors.append((model.decoder(found) - target).square().mean(1).cpu())
    return Codes(*(torch.cat(one).numpy() if one else None for one in (z, v, errors)))  # type: ignore[arg-type]


def measure(own: Codes, start: Codes | None, view: View, seed: int) -> dict[str, float]:
    """What linear probes read out of codes, how well features are rebuilt, and how far z moved.

    Args:
        own: The model's codes.
        start: Those of the model that it started from.
        view: The images.
        seed: Of the halves that probes are trained and tested on.

    Returns:
        ``camera from z``, ``camera from v``, ``identity from v``, ``chance of camera``, ``chance of identity``,
        ``reconstruction error``, ``reconstruction error of camera N``, ``moved``, as far as they can be taken.
    """
    rows = np.arange(len(view))
    camera = view.column("camid", rows)
    found: dict[str, float] = {}
    known = view.column("labelled", rows).astype(bool)
    pid = view.column("pid", rows)
    people = pid if known.all() else None
    for name, code in (("z", own.z), ("v", own.v)):
        if code is not None:
            probe = linear_probe(code, camera, seed=seed, group=people)
            found |= {f"camera from {name}": probe.accuracy, "chance of camera": probe.chance}
            if people is not None:
                probe = linear_probe(code, people, seed=seed)
                found |= {f"identity from {name}": probe.accuracy, "chance of identity": probe.chance}
    if own.error is not None:
        found["reconstruction error"] = float(own.error.mean())
        by_camera = error_by_camera(own.error, camera)
        found |= {f"reconstruction error of camera {camid}": value for camid, value in by_camera.items()}
    if start is not None and start.z.shape == own.z.shape:
        found["moved"] = moved(start.z, own.z)
    return {name: value for name, value in found.items() if not np.isnan(value)}  # JSON knows no NaN
