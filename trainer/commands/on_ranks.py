"""Decides whether this process is a user's command, which starts ranks, or one of the ranks that do its work."""

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
        words: The command line of a rank, after ``python -m embae.trainer``.
        nproc: Ranks to start on this machine. None: one per GPU, or one.
        work: The work of every rank.
        prepare: Gets the number of ranks and checks everything that can fail early. Runs once, before any rank works.
        finish: Runs once, after all ranks have worked.
        needs_launch: Whether even a single rank runs in its own process, which signals can stop.

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
