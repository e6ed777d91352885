"""Records → a sharded dataset, in parallel; a run keeps the shards that an interrupted one has finished."""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from embae.datasets.console.progress import Report, note, progress
from embae.datasets.errors import DataError
from embae.datasets.files.atomic import sync_folder, write_text
from embae.datasets.files.json_files import format_json, read_json
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.card import CARD, PARTIAL, read_card
from embae.datasets.index.records import Record, camera_names
from embae.datasets.sharding.dataset_lock import dataset_lock
from embae.datasets.sharding.index import SKIPPED, write_shard_index
from embae.datasets.sharding.options import DEFAULTS, ShardOptions
from embae.datasets.sharding.plan import ShardPlan, plan_shards
from embae.datasets.sharding.queue import CLAIM, ShardQueue
from embae.datasets.sharding.writer import (
    PART,
    RENAMED,
    TEMPORARY,
    ShardTask,
    is_bad,
    part_path,
    start_worker,
    write_shard,
    writing,
)

PLAN = "plan.json"
_NAMED = 10  # bad images named in one message


def write_shards(
    name: str,
    records: Sequence[Record],
    out: Path,
    *,
    source: Mapping[str, Any],
    options: ShardOptions = DEFAULTS,
    progress: Report = progress,
) -> Index:
    """Writes ``<out>/<name>``: tars, ``index.arrow``, ``dataset.yaml``.

    The work is done in ``<out>/<name>.partial``, which is renamed when complete. Started again after an interruption
    with the same records and options, it keeps the shards that are finished; on a complete dataset it does nothing.
    With ``join``, machines that share the folder share the work: each writes shards that no other has begun, then those
    that others have begun and not finished. A machine that finds all of them finished writes the index, and then all
    return.

    Args:
        name: The dataset's name: letters, digits, ``_`` and ``-``.
        records: Its images, in any order.
        out: The folder of all datasets.
        source: Where the images came from (reader, root, options), kept in the card; plain values only. What records
            call their cameras is added as ``cameras``: name → camid.
        options: How images are stored, and how the work is done.
        progress: How to report; gets the images as they are done.

    Raises:
        DataError: Records or images that cannot be used, a folder that holds something else, another process writing
            the same dataset, or a disk that is full.
    """
    plan = plan_shards(name, records, options)
    if named := camera_names(records):
        source = {**source, "cameras": named}
    folder, partial = out / name, out / (name + PARTIAL)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    settings = {"size": options.size, "images_per_shard": options.images_per_shard, "source": dict(source),
                "images": plan.images, "plan": plan.digest}
    with writing(partial), dataset_lock(out / f".{name}.lock", join=options.join):
        if _is_there(folder):
            return _finished(folder, plan, options.skip_bad)
        _prepare(partial, settings, options.join)
        if _is_there(folder):  # another process has finished meanwhile: nothing will use the partial folder
            shutil.rmtree(partial, ignore_errors=True)
        while not _is_there(folder):
            try:
                if not (partial / CARD).exists():
                    bad = _write_all(partial, plan, name, options, progress)
                    if bad:
                        raise DataError(_bad(name, bad, plan.images))
                if not (partial / CARD).exists():
                    write_shard_index(partial, plan, name, source)
                remove_leftovers(partial)
                partial.rename(folder)
                remove_leftovers(folder)  # what a late writer left between the two
                sync_folder(out)
            except OSError as error:
                # Several may find at the same time that all is written: one of them renames, and the others get here.
                # Or one writes a shard again because a bad image in it was repaired.
                if not options.join or error.errno not in RENAMED or not (_is_there(partial) or _is_there(folder)):
                    raise
    return _accept(Index.open(folder), options.skip_bad)  # another one may have skipped some


def _is_there(folder: Path) -> bool:
    """Whether there is a file of this name, or a folder that is not empty."""
    try:
        return any(folder.iterdir())
    except FileNotFoundError:  # another process may rename it at any moment
        return False
    except NotADirectoryError:
        return True


def _finished(folder: Path, plan: ShardPlan, skip_bad: bool) -> Index:
    """What is there already is the answer if it was made from the same records with the same options."""
    index = Index.open(folder)
    if index.card.get("plan") != plan.digest:
        raise DataError(
            f"{folder} exists and was made from other records or with other options (it has {len(index):,} images from "
            f"{index.card.get('source')}; now {plan.images:,} images); give another name, or remove the folder first"
        )
    _accept(index, skip_bad)
    note(f"{folder} is complete already: {len(index):,} images of the same records and options; nothing to do")
    return index


def _accept(index: Index, skip_bad: bool) -> Index:
    skipped = index.card.get("skipped", 0)
    if skipped and not skip_bad:
        raise DataError(
            f"{index.root} exists and was made without {skipped} bad images (see {SKIPPED} in it); accept that with "
            "--skip-bad, or repair them, remove the folder and shard again"
        )
    return index


def _prepare(partial: Path, settings: Mapping[str, Any], join: bool) -> None:
    """Prepares the folder to work in; empties it if it is of another plan and nobody else can be working in it."""
    settings = json.loads(json.dumps(settings))
    if not _is_there(partial):
        # Created with the plan in it, then renamed, which fails if another process has just done the same.
        scratch = partial.with_name(f".{partial.name}.{secrets.token_hex(8)}")
        scratch.mkdir()
        write_text(scratch / PLAN, format_json(settings))
        try:
            scratch.rename(partial)
            return
        except OSError as error:
            shutil.rmtree(scratch)
            if not join or error.errno not in RENAMED:
                raise
    there = _read_settings(partial, settings)
    if join:
        if differing := [key for key in {**settings, **there} if there.get(key) != settings.get(key)]:
            options = [f"{key} is {there.get(key)!r} there and {settings.get(key)!r} here"
                       for key in differing if key != "plan"] or ["other images or labels"]
            raise DataError(f"{partial} is of other records or options: {'; '.join(options)}; give the same to all "
                            "that join, or remove it first")
    elif there.get("plan") == settings["plan"]:
        for path in partial.iterdir():
            if path.name.endswith((CLAIM, TEMPORARY)):  # no other process is working
                _remove(path)
    else:
        shutil.rmtree(partial)
        _prepare(partial, settings, join)


def _read_settings(partial: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the process that began to write a dataset; of one that only has to be renamed, just its plan."""
    try:
        if (partial / CARD).exists():
            return {**settings, "plan": read_card(partial).get("plan")}
        return dict(read_json(partial / PLAN))
    except FileNotFoundError:
        if not partial.exists() or (partial / CARD).exists():  # renamed, or about to be, in this moment
            return dict(settings)
        raise DataError(f"{partial} exists and is not of embae shard; it works in a folder of this name: remove it") \
            from None
    except ValueError:
        return {}  # damaged by the disk


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _read_part(partial: Path, stem: str) -> dict[str, Any] | None:
    """A shard's part of the index, if the shard is finished."""
    try:
        part: dict[str, Any] = json.loads(part_path(partial, stem).read_text(encoding="utf-8"))
        if part["kept"] and (partial / f"{stem}.tar").stat().st_size != part["bytes"]:
            return None
        return part if part["bad"] is not None else None
    except (FileNotFoundError, ValueError, KeyError):  # not there, or damaged by the disk
        return None


def find_unfinished(partial: Path, plan: ShardPlan, size: tuple[int, int] | None, skip_bad: bool) -> list[str]:
    """Shards to write. One that left out bad images is among them if they have been repaired since."""
    left = []
    for stem, records in plan.shards.items():
        part = _read_part(partial, stem)
        if part is None or (part["bad"] and not skip_bad):
            left.append(stem)
        elif not all(is_bad(records[int(position)], size) for position in part["bad"]):
            part_path(partial, stem).unlink(missing_ok=True)
            left.append(stem)
    return left


def _write_all(partial: Path, plan: ShardPlan, name: str, options: ShardOptions, report: Report) -> list[str]:
    """Writes shards in worker processes until all are finished; returns a sentence for each image that forbids that."""
    size, skip_bad, join = options.size, options.skip_bad, options.join

    def is_done(stem: str) -> bool:
        part = _read_part(partial, stem)
        return part is not None and (skip_bad or not part["bad"])

    left = find_unfinished(partial, plan, size, skip_bad)
    if len(left) < len(plan.shards):
        done = f"{len(plan.shards) - len(left)} of {len(plan.shards)} shards are finished"
        note(f"{name}: joining the others, {done}" if join else f"{name}: resuming after an interruption, {done}")
    if not left:
        return []
    queue, label = ShardQueue(partial, left, is_done, join), f"sharding {name}"
    # Not forked from here: the parent may be large, with threads. The server loads the libraries once for all workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["webdataset", write_shard.__module__])
    counter = context.Value("q", 0)
    stop, alive = context.Pipe(duplex=False)
    workers = min(options.workers or len(os.sched_getaffinity(0)), len(left))
    executor = ProcessPoolExecutor(workers, context, start_worker, (stop, counter))
    bad: dict[str, list[str]] = {}
    running: dict[Future[list[str]], str] = {}
    shown = 0
    try:
        with report(label, sum(len(plan.shards[stem]) for stem in left)) as advance:
            while True:
                while len(running) < workers and (stem := queue.next()):
                    task = ShardTask(partial, stem, name, plan.shards[stem], size, skip_bad)
                    with defer_interrupt():
                        running[executor.submit(write_shard, task)] = stem
                if not running and not queue.waiting:
                    break
                if running:
                    ended = wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done
                else:
                    ended = set()
                    time.sleep(0.5)
                for future in ended:
                    stem = running.pop(future)
                    queue.written(stem)
                    if (sentences := future.result()) and not skip_bad:
                        bad[stem] = sentences
                count = counter.get_obj().value  # without its lock, which a killed worker may have kept
                count += sum(len(plan.shards[stem]) for stem in queue.elsewhere)
                advance(count - shown)
                shown = count
        executor.shutdown()
        return [sentence for stem in plan.shards for sentence in bad.get(stem, [])]
    except BrokenProcessPool as error:
        raise DataError(
            f"{label}: a worker process was killed, perhaps for want of memory; start again with fewer workers, "
            "finished shards are kept"
        ) from error
    finally:
        # Workers end when this end closes: on an error or Ctrl-C here, and by the kernel if this process is killed.
        alive.close()
        executor.shutdown(cancel_futures=True)
        stop.close()


@contextmanager
def defer_interrupt() -> Iterator[None]:
    """Keeps Ctrl-C for later while workers start, and from the server that they are forked from: one that is half
    started would print a traceback. They end with us anyway."""
    interrupts: list[int] = []
    ours = threading.current_thread() is threading.main_thread()  # Python has its handlers called by this one alone
    handler = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number)) if ours else None
    resource_tracker.ensure_running()  # it unblocks what is blocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which the server inherits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if ours:
            signal.signal(signal.SIGINT, handler or signal.SIG_DFL)
        if interrupts:
            signal.raise_signal(signal.SIGINT)


def _bad(name: str, bad: list[str], images: int) -> str:
    lines = [f"{name}: {len(bad):,} of {images:,} images cannot be used:", *bad[:_NAMED]]
    if len(bad) > _NAMED:
        lines.append(f"and {len(bad) - _NAMED:,} more")
    lines.append("Repair or remove them and start again (finished shards are kept), or leave them out with --skip-bad.")
    return "\n  ".join(lines[:-1]) + "\n" + lines[-1]


def remove_leftovers(folder: Path) -> None:
    """Removes what only an unfinished dataset needs."""
    for path in folder.iterdir():
        if path.name == PLAN or path.name.endswith((PART, CLAIM, TEMPORARY)):
            _remove(path)
