"""Whatever a stranger writes stays text."""

from __future__ import annotations

from embae.trainer.report.markup import Markup, image, joined, section, table, tag, text

BAD = '<script>alert("1")</script> & \''


def test_text_is_escaped_once_and_markup_never() -> None:
    assert text(BAD) == "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &#x27;"
    assert text(text(BAD)) == text(BAD)
    assert tag("p", BAD, tag("b", "x")) == f"<p>{text(BAD)}<b>x</b></p>"
    assert isinstance(joined(["<", Markup("<br>")]), Markup) and joined(["<", Markup("<br>")]) == "&lt;<br>"


def test_attributes_are_escaped() -> None:
    made = tag("td", "1", class_="n", data_sort='" onclick="x')
    assert made == '<td class="n" data-sort="&quot; onclick=&quot;x">1</td>'
    assert tag("td", "1", class_=None) == "<td>1</td>"
    assert 'alt="&lt;&quot;&gt;"' in image("data:,", '<">', 1, 2)


def test_tables_and_sections_escape() -> None:
    made = section("x", BAD, table([BAD, "a"], [[BAD, (0.5, BAD)]]))
    assert "<script" not in made and made.count("&lt;script") == 4 and 'data-sort="0.5"' in made
