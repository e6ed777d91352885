"""An order of images that does not depend on labels or sharding."""

from __future__ import annotations

import numpy as np

from embae.datasets.sampling.keyed_random import scatter
from embae.datasets.sampling.view import View


def order_by_content(view: View) -> np.ndarray:
    """All rows of a view, `(N,)`, in an order that depends on the images alone."""
    return np.argsort(scatter(view.fingerprints()), kind="stable")
