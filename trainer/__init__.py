"""Training of embeddings, and what a trained model is used with: ``from embae.trainer import load``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embae.trainer.deployment.load import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Not imported above: it needs torch, and what a login node looks with must not wait for that (PEP 562).
    if name == "load":
        from embae.trainer.deployment.load import load
        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
