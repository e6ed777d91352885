"""Imports that the garbage collector keeps out of."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
    """Within it the garbage collector rests; what has been imported by its end, it never looks at again.

    Else it walks through all that torch, DeepSpeed and timm define seven times while they are imported, and once more
    as the process ends, and finds nothing: measured, 2.5 of 6.5 seconds of a rank's CPU time besides its work.
    """
    there, resting = len(sys.modules), not gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > there:
            gc.freeze()
        if not resting:
            gc.enable()
