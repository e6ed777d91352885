"""Builds HTML by functions that escape: only this file turns text into markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Markup(str):
    """Text that is HTML already; any other text is escaped when it becomes part of a page."""

    __slots__ = ()


def text(value: object) -> Markup:
    """A value as HTML: markup as it is, all else escaped."""
    return value if isinstance(value, Markup) else Markup(escape(str(value)))


def joined(parts: Iterable[object]) -> Markup:
    """Parts one after the other."""
    return Markup("".join(map(text, parts)))


def tag(name: str, *inside: object, **attributes: object) -> Markup:
    """``<name …>inside</name>``; ``class_`` is class, ``_`` in a name is ``-``, None leaves an attribute out."""
    attribute_text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{attribute_text}>{joined(inside)}</{name}>")


def image(source: str, alt: str, width: int, height: int, **attributes: object) -> Markup:
    """A picture."""
    attribute_text = "".join(f' {key.rstrip("_")}="{escape(str(value))}"' for key, value in attributes.items())
    return Markup(f'<img src="{escape(source)}" alt="{escape(alt)}" width="{width}" height="{height}"{attribute_text}>')


def section(name: str, title: str, *inside: object) -> Markup:
    """A part of the page, under a heading that its table of contents links to."""
    return tag("section", tag("h2", title), *inside, id=name)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, sortable: bool = True,
          numbers: int | None = None, cards: bool = False) -> Markup:
    """A table that scrolls sideways if it is too wide.

    Args:
        head: Its header.
        rows: Cells; a pair (what sorts, what is shown) stands for a cell that sorts by something else than its text.
        sortable: Whether a click on a header sorts.
        numbers: The first column of numbers, which stand to the right; all columns but the first by default.
        cards: Whether a phone shows each row as a list of its cells, for tables of more words than numbers.
    """
    first = 1 if numbers is None else numbers
    cells = [tag("th", tag("button", name, type="button") if sortable else name, scope="col",
                 class_="n" if at >= first else None) for at, name in enumerate(head)]
    names = head if cards else [None] * len(head)
    body = [tag("tr", *(_cell(cell, at >= first, name) for at, (cell, name) in enumerate(zip(row, names, strict=True))))
            for row in rows]
    kinds = ["sortable"] * sortable + ["cards"] * cards
    return tag("div", tag("table", tag("thead", tag("tr", *cells)), tag("tbody", *body),
                          class_=" ".join(kinds) or None), class_="wide")


def _cell(cell: object, number: bool, name: str | None) -> Markup:
    sort, shown = cell if isinstance(cell, tuple) else (None, cell)
    return tag("td", shown, class_="n" if number else None, data_sort=sort, data_name=name)
