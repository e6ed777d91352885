"""The batch scripts that ship with embae, filled in for a job, and sent."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from importlib import resources

from embae.trainer.errors import RecipeError, RunError

_HERE = "# embae slurm: what it was told comes here\n"
_OPTION = re.compile(r"[a-z][a-z-]*")
# What sbatch would take apart, for it reads these lines by rules of its own that are not the shell's.
_UNSAFE = re.compile(r"""[^!-~]|["'\\#]""")


def fill(name: str, options: Mapping[str, str | None], settings: Mapping[str, str], words: Sequence[str]) -> str:
    """A shipped batch script, filled in; nothing else of it changes.

    Args:
        name: Of the script: train or shard.
        options: sbatch's long options, without dashes. None takes one away that the script has; an option that has no
            value is given an empty one.
        settings: Variables that the script reads, see its head.
        words: Arguments that it is to have before those that sbatch gives it. They may hold anything, as may settings.

    Raises:
        RecipeError: An option that a line of the script cannot hold.
    """
    head, rest = [], (resources.files("embae.slurm") / f"{name}.sbatch").read_text(encoding="utf-8")
    shebang, rest = rest.split("\n", 1)
    chosen: dict[str, str | None] = {}
    while rest.startswith("#SBATCH --"):
        line, rest = rest.split("\n", 1)
        key, _, value = line.removeprefix("#SBATCH --").partition("=")
        chosen[key] = value
    for key, given in {**chosen, **options}.items():
        if not _OPTION.fullmatch(key):
            raise RecipeError(f"{key!r}: is no option of sbatch's; write for example account=vision")
        if given is None:
            continue
        if found := _UNSAFE.search(given):
            raise RecipeError(f"{key}={given!r}: a line for sbatch cannot hold {found.group()!r}; say it in other "
                              "words, or give it to sbatch itself")
        head.append(f"#SBATCH --{key}={given}" if given else f"#SBATCH --{key}")
    told = [f"{key}={shlex.quote(value)}" for key, value in settings.items()]
    told += [f'set -- {shlex.join(words)} "$@"'] if words else []
    before, mark, after = rest.partition(_HERE)
    assert mark, f"{name}.sbatch has lost the place for its settings"
    return "\n".join([shebang, *head, before + "\n".join(told) + "\n" + after])


def submit(script: str) -> str:
    """Sends a script to SLURM.

    Returns:
        The job's number.

    Raises:
        RunError: SLURM is not there, or does not take it.
    """
    try:
        done = subprocess.run(["sbatch", "--parsable"], input=os.fsencode(script), capture_output=True)
    except FileNotFoundError:
        raise RunError("sbatch: not found; --submit wants a machine that sends jobs to SLURM") from None
    if done.returncode:
        raise RunError(f"sbatch did not take the job: {os.fsdecode(done.stderr).strip()}")
    return os.fsdecode(done.stdout).strip().partition(";")[0]  # behind it, the cluster's name where there are several
