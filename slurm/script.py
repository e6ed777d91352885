"""Fills in the batch scripts that ship with embae, and submits them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from importlib import resources

from embae.trainer.errors import RecipeError, RunError

_MARK = "# embae slurm: variables and arguments are inserted here\n"
_OPTION = re.compile(r"[a-z][a-z-]*")
# Characters that sbatch would interpret: it parses these lines by its own rules, which are not the shell's.
_UNSAFE = re.compile(r"""[^!-~]|["'\\#]""")


def fill_script(name: str, options: Mapping[str, str | None], variables: Mapping[str, str],
                arguments: Sequence[str]) -> str:
    """Fills in a shipped batch script; the rest of it does not change.

    Args:
        name: Name of the script: train or shard.
        options: Long options of sbatch, without dashes. None removes an option of the script; an option without a
            value has an empty one.
        variables: Variables that the script reads, see its head. They may have any characters.
        arguments: Arguments of the script, before those given to sbatch. They may have any characters.

    Raises:
        RecipeError: An option cannot be written in a line of the script.
    """
    lines, rest = [], (resources.files("embae.slurm") / f"{name}.sbatch").read_text(encoding="utf-8")
    shebang, rest = rest.split("\n", 1)
    shipped: dict[str, str | None] = {}
    while rest.startswith("#SBATCH --"):
        line, rest = rest.split("\n", 1)
        key, _, default = line.removeprefix("#SBATCH --").partition("=")
        shipped[key] = default
    for key, value in {**shipped, **options}.items():
        if not _OPTION.fullmatch(key):
            raise RecipeError(f"{key!r}: is not an option of sbatch; write for example account=vision")
        if value is None:
            continue
        if unsafe := _UNSAFE.search(value):
            raise RecipeError(f"{key}={value!r}: an #SBATCH line cannot contain {unsafe.group()!r}; use another value, "
                              "or pass the option to sbatch itself")
        lines.append(f"#SBATCH --{key}={value}" if value else f"#SBATCH --{key}")
    inserted = [f"{key}={shlex.quote(value)}" for key, value in variables.items()]
    inserted += [f'set -- {shlex.join(arguments)} "$@"'] if arguments else []
    before, mark, after = rest.partition(_MARK)
    assert mark, f"{name}.sbatch has no line for variables and arguments"
    return "\n".join([shebang, *lines, before + "\n".join(inserted) + "\n" + after])


def submit_script(script: str) -> str:
    """Submits a script to SLURM.

    Returns:
        The job's number.

    Raises:
        RunError: sbatch is not installed, or rejects the job.
    """
    try:
        done = subprocess.run(["sbatch", "--parsable"], input=os.fsencode(script), capture_output=True)
    except FileNotFoundError:
        raise RunError("sbatch: not found; run --submit on a machine that can submit jobs to SLURM") from None
    if done.returncode:
        raise RunError(f"sbatch rejected the job: {os.fsdecode(done.stderr).strip()}")
    return os.fsdecode(done.stdout).strip().partition(";")[0]  # after it, the name of the cluster if there are several
