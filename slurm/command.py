"""``embae slurm``: a batch job that trains a recipe or shards a dataset."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from embae.slurm.script import fill_script, submit_script
from embae.trainer.errors import RecipeError

Recipe = Annotated[str, typer.Argument(metavar="RECIPE|shard", help=(
    "A shipped recipe or a YAML file; or the word shard, with the arguments of embae shard after --."))]
Words = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False, help=(
    "Keys of the recipe to set, such as data.root=/data/shards."))]
Settings = Annotated[list[str] | None, typer.Option("--settings", metavar="NAME|FILE", help=(
    "Settings to combine with the recipe, such as quick. Repeatable."))]
Sbatch = Annotated[list[str] | None, typer.Option("--sbatch", metavar="OPTION=VALUE", help=(
    "Any other option of sbatch, such as account=vision or cpus-per-task=8. Repeatable."))]


@dataclass
class Job:
    """A batch job, as `fill_script` takes it.

    Attributes:
        script: Name of the shipped script.
        options: Options of sbatch; None removes one that the script has.
        variables: Variables that the script reads.
        arguments: Arguments of the script.
    """

    script: str
    options: dict[str, str | None] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)

    def set_array(self, jobs: int) -> None:
        """Makes the job an array, whose tasks have a log each."""
        self.options |= {"array": f"0-{jobs - 1}", "output": "%x-%A_%a.log"}

    def text(self) -> str:
        """The batch script."""
        return fill_script(self.script, self.options, self.variables, self.arguments)


def slurm(
    ctx: typer.Context,
    recipe: Recipe,
    words: Words = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1,
    gpus_per_node: Annotated[int | None, typer.Option(min=0, help="GPUs of each node; each GPU has a rank.")] = None,
    ranks_per_node: Annotated[int | None, typer.Option(min=1, help="Ranks of each node without GPUs.")] = None,
    time: Annotated[str | None, typer.Option(help=(
        "Time limit, such as 4:00:00. A job that reaches it is queued again and resumes."))] = None,
    partition: Annotated[str | None, typer.Option(help="Partition.")] = None,
    sbatch: Sbatch = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/RECIPE.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help=(
        "Train this many runs as a job array, with seeds 0, 1, …"))] = None,
    array: Annotated[int | None, typer.Option(min=1, help="Shard the dataset by an array of this many jobs.")] = None,
    direct: Annotated[bool, typer.Option("--direct", help="Let srun start the ranks, without torchrun.")] = False,
    warn: Annotated[int | None, typer.Option(min=1, max=65535, show_default="120; 60 for shard", help=(
        "Seconds before the time limit when the job stops with a checkpoint."))] = None,
    max_restarts: Annotated[int, typer.Option(min=0, help="How often the job may be restarted.")] = 20,
    send: Annotated[bool, typer.Option("--submit", help="Submit the script instead of printing it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    """Print or submit a SLURM script that trains or shards.

    A job that is preempted or near its time limit saves a checkpoint, is queued again and resumes.

    Example: embae slurm embae-cam data.root=/data/shards --nodes 4 --gpus-per-node 8 --time 4:00:00 --submit
    """
    if recipe == "shard":
        for_training = {"--nodes": nodes > 1, "--gpus-per-node": gpus_per_node, "--ranks-per-node": ranks_per_node,
                        "--settings": settings, "--out": out, "--seeds": seeds, "--direct": direct}
        for option, value in for_training.items():
            if value:
                raise RecipeError(f"{option}: is for training; write the options of embae shard after --")
        job = _sharding_job(ctx, words or [], array)
    else:
        if gpus_per_node and ranks_per_node:
            raise RecipeError("--ranks-per-node: is for nodes without GPUs; with GPUs, each GPU has a rank")
        if array:
            raise RecipeError("--array: is for sharding; for runs with several seeds, use --seeds")
        job = _training_job(recipe, words or [], settings or [], seeds)
        job.options |= {"nodes": str(nodes), "ntasks-per-node": str(gpus_per_node or ranks_per_node or 1),
                        "gpus-per-node": str(gpus_per_node) if gpus_per_node else None}
        job.variables |= {"EMBAE_DIRECT": "1" if direct else ""}
        if out:
            job.variables["EMBAE_OUT"] = str(out)
    job.options |= {"time": time, "partition": partition}
    if warn is not None:
        job.options["signal"] = f"B:USR1@{warn}"
    for option in sbatch or []:
        key, _, text = option.partition("=")
        job.options[key.removeprefix("--")] = text
    job.variables = {"EMBAE_PYTHON": sys.executable, "EMBAE_MAX_RESTARTS": str(max_restarts), **job.variables}
    script = job.text()
    if send:
        print(submit_script(script))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(script))  # file names may have any bytes


def _training_job(recipe: str, overrides: Sequence[str], settings: Sequence[str], seeds: int | None) -> Job:
    """The job of one run, or of one run for each seed.

    Raises:
        RecipeError: The recipe has a mistake, or sets the seed of runs with several seeds.
    """
    from embae.trainer.recipe.load import load_recipe
    name = load_recipe(recipe, overrides, settings).name
    if seeds and any(word.partition("=")[0] == "seed" for word in overrides):
        raise RecipeError("seed: each run of --seeds has its own")
    job = Job("train", {"job-name": name}, {"EMBAE_OUT": str(Path("runs") / name)},
              [recipe, *overrides, *(word for name in settings for word in ("--settings", name))])
    if seeds:
        job.set_array(seeds)
    return job


def _sharding_job(ctx: typer.Context, arguments: Sequence[str], jobs: int | None) -> Job:
    """The job that shards a dataset, or an array of jobs that share the work.

    Raises:
        UsageError: `embae shard` does not have these arguments; reported now, not when the job starts.
    """
    command = ctx.find_root().command
    command.commands["shard"].make_context("embae shard", list(arguments))  # type: ignore[attr-defined]
    job = Job("shard", arguments=list(arguments))
    if jobs:
        job.set_array(jobs)
    return job
