"""The command line.

Exit codes: 0 done; 1 the run failed or was interrupted; 2 bad input, nothing started; 75 stopped on request, the same
command goes on. Errors are sentences on stderr; a traceback is for our own bugs, or shown with ``--debug``. What needs
torch is imported by the commands that train.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from embae.datasets.errors import DataError
from embae.slurm.command import slurm
from embae.trainer.adapt_command import adapt
from embae.trainer.bench_command import bench
from embae.trainer.calibrate_command import calibrate
from embae.trainer.errors import RunError, Stopped, exit_code, lost
from embae.trainer.export_command import export
from embae.trainer.extract_command import extract
from embae.trainer.importing import uncollected
from embae.trainer.merging import inspect_merged, merge
from embae.trainer.options import Debug, Expand, Json, Overrides, RecipeName, Rerank, Settings, ranks_here
from embae.trainer.report.command import report as report_command
from embae.trainer.schema import TTA
from embae.trainer.search_command import search
from embae.trainer.stopping import stopping
from embae.trainer.train_command import train

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Person re-identification embeddings that move to a new camera network without labels.")
recipes_app = typer.Typer(no_args_is_help=True, help="The recipes that ship with embae, and your own.")
app.add_typer(recipes_app, name="recipes")


@app.command()
def shard(
    source: Annotated[str, typer.Argument(help="market1501, dukemtmc, cuhk03, cuhk01, viper, ward, msmt17, pku-reid, "
                                               "luperson, luperson-nl, folder, csv or synthetic.")],
    options: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="The source's options.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the original images.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of all sharded datasets.")] = Path("shards"),
    name: Annotated[str | None, typer.Option(help="The dataset's name; by default the source's.")] = None,
    size: Annotated[str | None, typer.Option(help="Store images at HEIGHTxWIDTH, such as 288x144.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out, and list, what cannot be decoded.")] = False,
    join: Annotated[bool, typer.Option("--join", help="Share the work with machines that are given the same.")] = False,
    debug: Debug = False,
) -> None:
    """Turn a folder of images into WebDataset shards with an index.

    Example: embae shard market1501 --root /data/Market-1501 --out shards --size 288x144
    """
    from embae.datasets.readers import read
    from embae.datasets.sharding import write_shards
    chosen = dict(_pair(option) for option in options or [])
    records = read(source, root, chosen)
    about = {"reader": source, "root": str(root.resolve()) if root else None, "options": chosen}
    index = write_shards(name or source, records, out, source=about, size=_size(size), workers=workers,
                         skip_bad=skip_bad, join=join)
    print(f"{index.root}: {len(index):,} images in {len(index.shards)} shards")


@app.command()
def inspect(
    shards: Annotated[str, typer.Argument(help=(
        "A sharded dataset, such as shards/market1501, a merged set, or the url of one."))],
    verify: Annotated[bool, typer.Option("--verify", help="Read every image and check its checksum.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet (PNG) here.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a sharded dataset holds.

    Example: embae inspect shards/market1501 --verify --sheet market.png
    """
    from rich.console import Console

    from embae.datasets.contact_sheet import contact_sheet
    from embae.datasets.index import Index
    from embae.datasets.inspection import describe, render
    from embae.datasets.merged import is_merged
    from embae.datasets.remote import location
    from embae.datasets.verification import verify as find_problems
    place = location(shards)
    if is_merged(place):
        inspect_merged(place, as_json, looked_into=verify or bool(sheet))
        return
    index = Index.open(place)
    description = describe(index)
    problems = find_problems(index) if verify else []
    if as_json:
        print(json.dumps({**description, **({"problems": problems} if verify else {})}, indent=1))
    else:
        Console(soft_wrap=True).print(render(description))
    if sheet:
        contact_sheet(index, sheet)
        print(f"contact sheet: {sheet}", file=sys.stderr)
    if problems:
        count = f"{len(problems)} problems" if len(problems) > 1 else "one problem"
        raise DataError("\n  ".join([f"{shards}: {count}", *problems]))
    if verify and not as_json:
        print(f"verified: all {len(index):,} images are as they were written")


@recipes_app.command("list")
def recipes_list() -> None:
    """Name the shipped recipes and settings, each with its first line.

    Example: embae recipes list
    """
    from embae.trainer.recipe import SETTINGS, names, source
    for folder in ("", SETTINGS):
        if folder:
            print(f"\n--{folder}")
        for name in names(folder):
            print(f"{name:20} {source(name, folder)[0].splitlines()[0].removeprefix('# ')}")


@recipes_app.command("show")
def recipes_show(recipe: RecipeName) -> None:
    """Print a recipe as it is written.

    Example: embae recipes show embae-cam
    """
    from embae.trainer.recipe import source
    print(source(recipe)[0], end="")


@recipes_app.command("check")
def recipes_check(
    recipe: RecipeName,
    overrides: Overrides = None,
    settings: Settings = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Print it with every default and override.")] = False,
) -> None:
    """Check a recipe; its data is looked at by embae train before anything starts.

    Example: embae recipes check embae-cam data.root=/data/shards
    """
    from embae.trainer.recipe import dump, load
    found = load(recipe, overrides or [], settings or [])
    print(dump(found) if resolved else f"{found.name}: fine; stages {', '.join(found.run)}")


@recipes_app.command("schema")
def recipes_schema(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it here, instead of printing it.")] = None,
) -> None:
    """Print the JSON schema of recipes, by which editors complete and check keys.

    Example: embae recipes schema --out recipe.schema.json
    """
    from embae.datasets.index_writer import write_whole
    from embae.trainer.recipe_schema import recipe_schema
    text = json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"
    if out is None:
        print(text, end="")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda file: file.write(text.encode()))


@app.command()
def compare(
    words: Annotated[list[str] | None, typer.Argument(metavar="[RECIPE|KEY=VALUE]...", show_default=False, help=(
        "Recipes, by default all that are shipped, and keys to set in each of them."))] = None,
    settings: Settings = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each recipe, with seeds 0, 1, …")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the comparison.")] = Path("runs/comparison"),
    nproc: Annotated[int | None, typer.Option(min=1, help="Ranks here; by default one a GPU, or one.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train every stage of every run anew, sharing none.")] = False,
    probes: Annotated[bool, typer.Option("--probes", help="Print also what probes find in z and v.")] = False,
    debug: Debug = False,
) -> None:
    """Run recipes side by side on one target and print one table; what they share is trained once.

    Example: embae compare --settings quick --seeds 3 --nproc 2
    """
    from embae.trainer.compare import plan, prepare, report
    from embae.trainer.launch import launch
    recipes = [word for word in words or [] if "=" not in word]
    overrides = [word for word in words or [] if "=" in word]
    runs = plan(recipes, overrides, settings or [], seeds, out)
    worker, ours = "RANK" in os.environ, "EMBAE_STORE" in os.environ
    if not ours and os.environ.get("RANK", "0") == "0":
        print(f"comparison of {len(runs)} runs in {out}", flush=True)
        prepare(runs, int(os.environ["WORLD_SIZE"]) if worker else ranks_here(nproc))
    if worker:
        with uncollected():
            from embae.trainer.distributed import join, leave
        world = join(runs[0].recipe.timeout)
        with uncollected():
            from embae.trainer.training import train_all
        train_all(runs, out, world, fresh=fresh)
        leave()
        if world.first and not ours:
            print(report(runs, out, probes))
        return
    if code := launch(["compare", *sys.argv[2:]], ranks_here(nproc)):
        raise typer.Exit(code)
    print(report(runs, out, probes))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder, the folder of a stage, or an export.")],
    dataset: Annotated[str | None, typer.Option(
        help="A dataset's name below data.root, or the folder of its shards; by default the target.")] = None,
    tta: Annotated[TTA | None, typer.Option(help="Test-time augmentation; by default the recipe's.")] = None,
    rerank: Rerank = None,
    expand: Expand = None,
    to: Annotated[Path | None, typer.Option("--json", help="Write the scores here as JSON.")] = None,
    nproc: Annotated[int | None, typer.Option(min=1, help="Ranks here; by default one a GPU, or one.")] = None,
    debug: Debug = False,
) -> None:
    """Score a run's models on a dataset's query and gallery.

    Example: embae evaluate runs/embae-cam --dataset shards/msmt17 --tta ten-crop --json scores.json
    """
    from embae.trainer.launch import launch
    from embae.trainer.rescore import question, rescore
    asked = question(run, dataset, tta, rerank, expand)
    if "RANK" in os.environ or (ranks := ranks_here(nproc)) == 1:
        rescore(asked, to)
    elif code := launch(["evaluate", *sys.argv[2:]], ranks):
        raise typer.Exit(code)


app.command()(train)
app.command()(merge)
app.command()(bench)
app.command()(adapt)
app.command()(calibrate)
app.command()(extract)
app.command()(search)
app.command()(export)
app.command("report")(report_command)
app.command()(slurm)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise DataError(f"{text!r}: found no key=value; options are written like split=half")
    return key, value


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if not found:
        raise DataError(f"--size {text}: wanted HEIGHTxWIDTH in pixels, such as 288x144")
    return int(found[1]), int(found[2])


def _run(application: typer.Typer) -> None:
    """Runs a command; what it raises becomes a sentence and an exit code. Usage errors are typer's own (code 2)."""
    worker = "RANK" in os.environ
    if worker:
        stopping.listen()
    try:
        application()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if code == 130:  # typer's for Ctrl-C
            print("\nembae: interrupted; the same command goes on", file=sys.stderr, flush=True)
            code = 1
        if worker and code:
            sys.stdout.flush()
            os._exit(code)
        sys.exit(code)
    except Stopped as stopped:
        stopping.end(str(stopped))
    except Exception as error:
        broken = lost(error)
        if broken and stopping.asked:  # the others have ended as they were asked to, a moment before this rank
            stopping.cut()
        error = broken or error
        ours = exit_code(error) == 2
        foreseen = ours or isinstance(error, (RunError, FloatingPointError, OSError, MemoryError))
        if not foreseen or "--debug" in sys.argv:
            traceback.print_exc()
        print(f"embae: {error or type(error).__name__}" if foreseen else
              "embae: this is a bug of embae's; please report it with the lines above", file=sys.stderr, flush=True)
        sys.stdout.flush()
        if worker and not ours and not broken:
            stopping.fail(str(error))
        # Not sys.exit: other ranks may wait for this one in an exchange that the interpreter's end would wait for.
        os._exit(2 if ours else 1)


def main() -> None:
    """``embae``."""
    _run(app)


def train_main() -> None:
    """``python -m embae.trainer``: ``embae train`` without the word, or another command of ranks; a rank of it."""
    one = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    others: dict[str, Callable[..., None]] = {"compare": compare, "evaluate": evaluate, "bench": bench,
                                           "extract": extract}
    command = others[sys.argv.pop(1)] if sys.argv[1:2] and sys.argv[1] in others else train
    one.command()(command)
    _run(one)
