"""The command line.

Exit codes: 0 done; 1 the run failed or was interrupted; 2 bad input, nothing started; 75 stopped on request, the same
command goes on. Errors are sentences on stderr; a traceback is for our own bugs, or shown with ``--debug``. What needs
torch is imported by the commands that train.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

import typer

from embae.slurm.command import slurm
from embae.trainer.commands.adapt import adapt
from embae.trainer.commands.bench import bench
from embae.trainer.commands.calibrate import calibrate
from embae.trainer.commands.compare import compare
from embae.trainer.commands.datasets import inspect, merge, shard
from embae.trainer.commands.evaluate import evaluate
from embae.trainer.commands.export import export
from embae.trainer.commands.extract import extract
from embae.trainer.commands.recipes import recipes_app
from embae.trainer.commands.report import report
from embae.trainer.commands.search import search
from embae.trainer.commands.train import train
from embae.trainer.errors import RunError, Stopped, exit_code, lost
from embae.trainer.runtime.signals import stopping

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Person re-identification embeddings that move to a new camera network without labels.")
app.add_typer(recipes_app, name="recipes")
for command in (
    shard,
    inspect,
    train,
    compare,
    evaluate,
    merge,
    bench,
    adapt,
    calibrate,
    extract,
    search,
    export,
    report,
    slurm,
):
    app.command()(command)


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
