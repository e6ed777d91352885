"""torch, imported when it is first used: a login node loads the recipe keys of the losses in well under a second.

A file in this folder writes ``from embae.trainer.losses.lazy_torch import torch`` and then uses `torch` as usual, but
not at module level: neither in decorators nor in base classes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
else:

    class _LazyTorch:
        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module("torch"), name)

    torch = _LazyTorch()
