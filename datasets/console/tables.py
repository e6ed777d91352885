"""Tables and paragraphs for a terminal, the same in a pipe: plain text, at most 80 columns wide, without colours."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence

from rich.box import Box
from rich.console import Console
from rich.table import Table

WIDTH = 80
_RULE = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str] = ()) -> str:
    """A table as text. Where it is too wide, its widest columns are folded at their spaces.

    Args:
        header: A name for each column.
        rows: A cell for each column.
        left: Columns of words, which stand on the left; numbers stand on the right.
    """
    table = Table(box=_RULE, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="")
    for name in header:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return _render(table)


def format_pairs(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and what they stand for, a line each."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for pair in pairs:
        table.add_row(*pair)
    return _render(table)


def format_text(text: str) -> str:
    """A paragraph, folded at its spaces."""
    return _render(text)


def _render(renderable: Table | str) -> str:
    file = io.StringIO()
    console = Console(file=file, width=WIDTH, color_system=None, force_terminal=False, markup=False, highlight=False,
                      emoji=False, legacy_windows=False)
    console.print(renderable)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip("\n").split("\n"))
