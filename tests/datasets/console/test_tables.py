"""Tables in a terminal: every cell in its column, never wider than 80, nothing lost."""

from __future__ import annotations

import re

import pytest

from embae.datasets.console.tables import WIDTH, format_pairs, format_table, format_text


def test_words_stand_on_the_left_and_numbers_on_the_right() -> None:
    assert format_table(["name", "images"], [["door", "7"], ["hall", "1,250"]], left=["name"]) == (
        "name  images\n"
        "────────────\n"
        "door       7\n"
        "hall   1,250")


@pytest.mark.parametrize("words", [1, 8, 40])
def test_what_is_too_wide_is_folded_and_not_cut(words: int) -> None:
    sentence = " ".join(f"word{number}" for number in range(words))
    text = format_table(["key", "what", "count"], [["a", sentence, "12"], ["b", "x" * 200, "3"]], left=["key", "what"])
    assert max(map(len, text.splitlines())) <= WIDTH and "…" not in text
    assert re.findall(r"word\d+", text) == sentence.split() and text.count("x") == 200


def test_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = format_pairs([("folder", "[bold]shards[/bold]"), ("licence", "l" * 100)])
    for name, value in (("COLUMNS", "30"), ("FORCE_COLOR", "1"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    assert format_pairs([("folder", "[bold]shards[/bold]"), ("licence", "l" * 100)]) == plain
    assert "[bold]" in plain and "\x1b" not in plain


def test_a_paragraph_is_folded_at_its_spaces() -> None:
    sentence = "word " * 40
    assert format_text(sentence).split() == sentence.split()
    assert max(map(len, format_text(sentence).splitlines())) <= WIDTH
