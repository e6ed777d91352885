"""``embae slurm``: a recipe, or sharding, as a job."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from embae.slurm.script import fill, submit
from embae.trainer.errors import RecipeError

Recipe = Annotated[str, typer.Argument(metavar="RECIPE|shard", help=(
    "A shipped recipe's name, or a YAML file; or shard, with what embae shard would get behind --."))]
Words = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False, help=(
    "Keys of the recipe to set, such as data.root=/data/shards."))]
Settings = Annotated[list[str] | None, typer.Option("--settings", metavar="NAME|FILE", help=(
    "Settings to go with the recipe, such as quick; may be given several times."))]
Sbatch = Annotated[list[str] | None, typer.Option("--sbatch", metavar="OPTION=VALUE", help=(
    "Any other option of sbatch's, such as account=vision or cpus-per-task=8; may be given several times."))]


def slurm(
    ctx: typer.Context,
    recipe: Recipe,
    words: Words = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")] = 1,
    gpus_per_node: Annotated[int | None, typer.Option(min=0, help="GPUs of each node; a rank on each.")] = None,
    ranks_per_node: Annotated[int | None, typer.Option(min=1, help="Ranks of each node, where it has no GPUs.")] = None,
    time: Annotated[str | None, typer.Option(help="Time limit, such as 4:00:00; the job goes on after it.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition.")] = None,
    sbatch: Sbatch = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; by default runs/RECIPE.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="An array: a run with each of the seeds 0, 1, …")] = None,
    array: Annotated[int | None, typer.Option(min=1, help="An array: so many jobs shard the dataset together.")] = None,
    direct: Annotated[bool, typer.Option("--direct", help="Let srun start the ranks, without torchrun.")] = False,
    warn: Annotated[int | None, typer.Option(min=1, max=65535, show_default="120; 60 for shard", help=(
        "Seconds before the time limit at which the job stops with a checkpoint."))] = None,
    max_restarts: Annotated[int, typer.Option(min=0, help="How often it may be started again.")] = 20,
    send: Annotated[bool, typer.Option("--submit", help="Send it, instead of printing it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    """Print a batch script that trains a recipe under SLURM, or shards a dataset; or send it.

    Stopped by preemption or before its time limit, the job leaves a checkpoint, is queued again and goes on.

    Example: embae slurm embae-cam data.root=/data/shards --nodes 4 --gpus-per-node 8 --time 4:00:00 --submit
    """
    options: dict[str, str | None] = {"time": time, "partition": partition}
    variables = {"EMBAE_PYTHON": sys.executable, "EMBAE_MAX_RESTARTS": str(max_restarts)}
    arguments = list(words or [])
    if warn is not None:
        options["signal"] = f"B:USR1@{warn}"
    if recipe == "shard":
        if wrong := [name for name, value in (("--nodes", nodes > 1), ("--gpus-per-node", gpus_per_node),
                     ("--ranks-per-node", ranks_per_node), ("--settings", settings), ("--out", out), ("--seeds", seeds),
                     ("--direct", direct)) if value]:
            raise RecipeError(f"{wrong[0]}: is for training; what embae shard is to get stands behind --")
        _check_shard(ctx, arguments)
        if array:
            options |= {"array": f"0-{array - 1}", "output": "%x-%A_%a.log"}
    else:
        from embae.trainer.recipe.load import load
        if gpus_per_node and ranks_per_node:
            raise RecipeError("--ranks-per-node: is for nodes without GPUs; with GPUs, each has a rank")
        if array:
            raise RecipeError("--array: is for sharding; runs with several seeds are --seeds")
        found = load(recipe, arguments, settings or [])
        if seeds and any(word.partition("=")[0] == "seed" for word in arguments):
            raise RecipeError("seed: each run of --seeds has its own")
        options |= {"job-name": found.name, "nodes": str(nodes),
                    "ntasks-per-node": str(gpus_per_node or ranks_per_node or 1),
                    "gpus-per-node": str(gpus_per_node) if gpus_per_node else None}
        if seeds:
            options |= {"array": f"0-{seeds - 1}", "output": "%x-%A_%a.log"}
        variables |= {"EMBAE_OUT": str(out or Path("runs") / found.name), "EMBAE_DIRECT": "1" if direct else ""}
        arguments = [recipe, *arguments, *(word for name in settings or [] for word in ("--settings", name))]
    for option in sbatch or []:
        key, _, value = option.partition("=")
        options[key.removeprefix("--")] = value
    script = fill("shard" if recipe == "shard" else "train", options, variables, arguments)
    if send:
        print(submit(script))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(script))  # file names may be of any bytes


def _check_shard(ctx: typer.Context, words: list[str]) -> None:
    """Parses them as `embae shard` would, so that a slip is told now and not when the job starts."""
    command = ctx.find_root().command
    command.commands["shard"].make_context("embae shard", list(words))  # type: ignore[attr-defined]
