"""The codes of a model, embeddings z and nuisance v, and what they contain of the target's training images.

Labels of the target are read here, after all training, and nowhere else. `probes.py` has the measures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
        error: `(N,)`, mean squared error of the reconstructed features; None without a decoder.
    """

    z: np.ndarray
    v: np.ndarray | None = None
    error: np.ndarray | None = None


@torch.inference_mode()
def compute_codes(model: EmbAE, view: View, features: np.ndarray, device: torch.device,
                  scale: tuple[Tensor, Tensor] | None = None) -> Codes:
    """Computes the codes of a view's images from their features.

    Args:
        model: In eval mode, on the device.
        view: The images.
        features: `(N, F)`, may be memory-mapped.
        device: Where to compute.
        scale: Mean and deviation of the features, if the decoder reconstructs standardised ones.
    """
    rows = np.arange(len(view))
    cameras, heads = model.row_cameras(view, rows), _nuisance_heads(model, view, rows)
    has_decoder = "decoder" in model.parts() and (heads is not None or "nuisance" not in model.parts())
    z, v, errors = [], [], []
    for start in range(0, len(view), CHUNK):
        chunk = slice(start, start + CHUNK)
        x = torch.from_numpy(np.array(features[chunk])).to(device)
        code = model.embed(x, None if cameras is None else torch.from_numpy(cameras[chunk]).to(device))
        z.append(code.float().cpu())
        if heads is not None:
            nuisance = model.nuisance(x, heads[chunk], np.unique(heads[chunk]).tolist())
            v.append(nuisance.float().cpu())
            code = torch.cat([code, nuisance], 1)
        if has_decoder:
            target = x if scale is None else (x - scale[0]) / scale[1]
            errors.append((model.decoder(code) - target).square().mean(1).cpu())
    return Codes(torch.cat(z).numpy(), torch.cat(v).numpy() if v else None,
                 torch.cat(errors).numpy() if errors else None)


def _nuisance_heads(model: EmbAE, view: View, rows: np.ndarray) -> np.ndarray | None:
    """`(N,)`, the nuisance head of each row; None if a camera of the view has none."""
    if "nuisance" not in model.parts():
        return None
    depth = len(model.heads[0])
    if depth and not {camera[:depth] for camera in view.cameras()} <= set(model.heads):
        return None
    return head_numbers(model.heads, view.names, view.locate(rows)[0], view.column("camid", rows))


def measure_codes(codes: Codes, start: Codes | None, view: View, seed: int) -> dict[str, float]:
    """Measures what linear probes read out of codes, how well features are reconstructed, and how far z moved.

    Args:
        codes: The model's codes.
        start: The codes of the model that it started from.
        view: The images.
        seed: Seed of the halves that probes are trained and tested on.

    Returns:
        ``camera from z``, ``camera from v``, ``identity from v``, ``chance of camera``, ``chance of identity``,
        ``reconstruction error``, ``reconstruction error of camera N``, ``moved``, as far as they can be measured.
    """
    rows = np.arange(len(view))
    camera = view.column("camid", rows)
    pid = view.column("pid", rows) if view.column("labelled", rows).astype(bool).all() else None
    measures: dict[str, float] = {}
    for name, code in (("z", codes.z), ("v", codes.v)):
        if code is not None:
            probe = linear_probe(code, camera, seed=seed, group=pid)
            measures |= {f"camera from {name}": probe.accuracy, "chance of camera": probe.chance}
            if pid is not None:
                probe = linear_probe(code, pid, seed=seed)
                measures |= {f"identity from {name}": probe.accuracy, "chance of identity": probe.chance}
    if codes.error is not None:
        measures["reconstruction error"] = float(codes.error.mean())
        by_camera = error_by_camera(codes.error, camera)
        measures |= {f"reconstruction error of camera {camid}": value for camid, value in by_camera.items()}
    if start is not None and start.z.shape == codes.z.shape:
        measures["moved"] = moved(start.z, codes.z)
    return {name: value for name, value in measures.items() if not np.isnan(value)}  # JSON has no NaN
