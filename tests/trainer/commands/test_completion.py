"""What the shell is told when a person presses the tab key."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.tiny_run import program


@pytest.mark.parametrize("words, names", [
    ("embae tra", ["train"]),
    ("embae train embae-", ["embae-cam", "embae-dataset", "embae-fix", "embae-narrow", "embae-new"]),
    ("embae recipes show str", ["strong-baseline"]),
    ("embae bench adapt-b", ["adapt-best"]),
    ("embae train baseline --settings q", ["quick"]),
    ("embae train mine.ya", []),  # then the shell completes files
])
def test_commands_recipes_and_settings_are_completed_without_torch(
        words: str, names: list[str], tmp_path: Path) -> None:
    asked = {"_EMBAE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    code = "import sys; sys.argv = ['embae']; from embae.trainer.commands.app import main; main()"
    done = program("-X", "importtime", "-c", code, cwd=tmp_path, **asked)
    assert done.stdout.split() == names
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported and not imported & {"torch", "timm", "deepspeed", "nvidia.dali"}
