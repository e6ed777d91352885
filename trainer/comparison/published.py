"""Published figures to stand beside ours: arXiv 1807.10591, Tables 1 to 4, all on Market-1501.

Table 1 is of models from DukeMTMC-reID, Table 2 of those from four sources; Tables 3 and 4 add PUL (Fan et al. 2017),
before and after its rounds. PUL's "several sources" need not be the same four; it stands beside them as in Table 4. mAP
is by trapezoid, as in Market-1501's own code, and the paper scores with the test-time augmentation of Hermans et al.

Table 3 prints 0.273 as mAP of the baseline from DukeMTMC-reID. Table 1 says 0.177 of the same model, and so does the
gain that Table 3 itself gives for EmbAE-cam (0.294 − 0.117), so 0.177 it is; 0.273 is the baseline of Tables 2 and 4.
"""

from __future__ import annotations

from collections.abc import Iterable

TTA = "ten-crop"
"""Test-time augmentation of the paper's figures."""
_NAMES = ("Rank-1", "Rank-1-nd", "mAP", "mAP-nd")
_TARGET = "market1501"
_DUKE = ("dukemtmc",)
_SEVERAL = ("cuhk03", "dukemtmc", "viper", "ward")
# By sources in alphabetical order and row of our recipes; None where the paper gives no figure.
_FIGURES: dict[tuple[tuple[str, ...], str], tuple[float | None, ...]] = {
    (_DUKE, "Baseline"): (0.421, 0.485, 0.177, 0.211),
    (_DUKE, "EmbAE-fix"): (0.553, 0.661, 0.275, 0.339),
    (_DUKE, "EmbAE-new"): (0.556, 0.650, 0.280, 0.337),
    (_DUKE, "EmbAE-cam"): (0.585, 0.669, 0.294, 0.345),
    (_DUKE, "PUL start"): (0.361, None, 0.142, None),
    (_DUKE, "PUL"): (0.447, None, 0.201, None),
    (_SEVERAL, "Baseline"): (0.528, 0.607, 0.273, 0.322),
    (_SEVERAL, "EmbAE-fix"): (0.596, 0.712, 0.329, 0.399),
    (_SEVERAL, "EmbAE-new"): (0.606, 0.707, 0.342, 0.404),
    (_SEVERAL, "EmbAE-cam"): (0.643, 0.729, 0.357, 0.414),
    (_SEVERAL, "PUL start"): (0.400, None, 0.170, None),
    (_SEVERAL, "PUL"): (0.455, None, 0.205, None),
}


def published(sources: Iterable[str], target: str, row: str) -> dict[str, float] | None:
    """What was published for a row.

    Args:
        sources: Names of the source datasets, in any order.
        target: Name of the dataset that is scored.
        row: As our recipes name it; ``PUL start`` is PUL before its rounds.

    Returns:
        ``Rank-1`` and ``mAP``, and ``Rank-1-nd`` and ``mAP-nd`` where given; None if nothing was published.
    """
    figures = _FIGURES.get((tuple(sorted(sources)), row)) if target == _TARGET else None
    if figures is None:
        return None
    return {name: figure for name, figure in zip(_NAMES, figures, strict=True) if figure is not None}
