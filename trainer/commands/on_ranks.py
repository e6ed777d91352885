"""Launcher or rank? A command that computes is either given by a user, or it is one of the ranks that do its work."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import typer

from embae.trainer.runtime.launch import count_ranks, is_launched_by_embae, is_rank, launch


def run_on_ranks(
    words: Sequence[str],
    nproc: int | None,
    *,
    work: Callable[[], None],
    prepare: Callable[[int], None] = lambda ranks: None,
    finish: Callable[[], None] = lambda: None,
    needs_launch: bool = True,
) -> None:
    """Runs `work` on ranks: on those that this command starts here, or as the rank that this process is.

    Args:
        words: The command line of a rank, behind ``python -m embae.trainer``.
        nproc: Ranks to start here; None: one a GPU, or one.
        work: What every rank does.
        prepare: Checks, given the number of ranks, all that can fail early. Runs once, before any rank works.
        finish: Runs once, after all ranks have worked.
        needs_launch: Whether a single rank is a process of its own too, which signals can stop.

    Raises:
        Exit: With the exit code of a rank that failed.
    """
    if is_rank():
        leads = os.environ["RANK"] == "0" and not is_launched_by_embae()  # our launcher prepares and finishes itself
        if leads:
            prepare(int(os.environ["WORLD_SIZE"]))  # the other ranks wait for this one to join
        work()
        if leads:
            finish()
        return
    ranks = count_ranks(nproc)
    prepare(ranks)
    if ranks == 1 and not needs_launch:
        work()
    elif code := launch(words, ranks):
        raise typer.Exit(code)
    finish()
