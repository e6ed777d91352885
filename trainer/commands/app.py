"""The command line: the table of commands, and the exit code of every error.

Exit codes: 0 done; 1 the run failed or was interrupted; 2 bad input, nothing was started; 75 stopped on request, run
the same command again to resume. Errors are sentences on stderr. A traceback shows a bug of embae, or is requested by
``--debug``. Modules that need torch are imported by the commands that compute.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import typer

from embae.slurm.command import slurm
from embae.trainer.commands.adapt import adapt
from embae.trainer.commands.bench import bench
from embae.trainer.commands.calibrate import calibrate
from embae.trainer.commands.compare import compare
from embae.trainer.commands.evaluate import evaluate
from embae.trainer.commands.export import export
from embae.trainer.commands.extract import extract
from embae.trainer.commands.inspect import inspect
from embae.trainer.commands.merge import merge
from embae.trainer.commands.recipes import recipes
from embae.trainer.commands.report import report
from embae.trainer.commands.search import search
from embae.trainer.commands.shard import shard
from embae.trainer.commands.train import train
from embae.trainer.errors import RunError, Stopped, exit_code, lost_rank
from embae.trainer.runtime.launch import is_rank
from embae.trainer.runtime.signals import StopSignals

Command = Callable[..., None]

COMMANDS: tuple[Command, ...] = (
    shard, inspect, merge, train, compare, adapt, calibrate, evaluate, extract, search, report, export, bench, slurm)
ON_RANKS: tuple[Command, ...] = (compare, evaluate, bench, extract)
"""Commands besides train that ``python -m embae.trainer`` starts as ranks."""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Person re-identification embeddings that adapt to a new camera network without labels.")
app.add_typer(recipes, name="recipes")
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """``embae``."""
    _run(app)


def train_main() -> None:
    """``python -m embae.trainer``, the command line of a rank: that of ``embae train``, or of one in `ON_RANKS`."""
    others = {command.__name__: command for command in ON_RANKS}
    command = others[sys.argv.pop(1)] if sys.argv[1:2] and sys.argv[1] in others else train
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    single.command()(command)
    _run(single)


def _run(application: typer.Typer) -> None:
    """Runs a command and turns its error into a sentence and an exit code; typer reports wrong usage (code 2)."""
    signals = StopSignals()
    if is_rank():
        signals.listen()
    try:
        application(obj=signals)
    except SystemExit as end:
        _exit(end)
    except Stopped as stopped:
        signals.exit_stopped(str(stopped))
    except Exception as error:
        _fail(error, signals)


def _exit(end: SystemExit) -> NoReturn:
    code = end.code if isinstance(end.code, int) else int(end.code is not None)
    if code == 130:  # typer's code for Ctrl-C
        print("\nembae: interrupted; run the same command again to resume", file=sys.stderr, flush=True)
        code = 1
    if is_rank() and code:
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _fail(error: Exception, signals: StopSignals) -> NoReturn:
    lost = lost_rank(error)
    if lost and signals.requested:  # the other ranks have ended as requested, a moment before this one
        signals.exit_now()
    error = lost or error
    bad_input = exit_code(error) == 2
    expected = bad_input or isinstance(error, (RunError, FloatingPointError, OSError, MemoryError))
    if not expected or "--debug" in sys.argv:
        traceback.print_exc()
    print(f"embae: {error or type(error).__name__}" if expected else
          "embae: this is a bug in embae; please report it with the lines above", file=sys.stderr, flush=True)
    sys.stdout.flush()
    if is_rank() and not bad_input and not lost:
        signals.record_failure(str(error))
    # Not sys.exit: other ranks may wait for this rank in an exchange, and the interpreter's exit would wait for it too.
    os._exit(2 if bad_input else 1)
