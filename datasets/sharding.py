"""Records → a sharded dataset, in parallel; what an interrupted run has finished is taken over by the next."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embae.datasets.card import CARD, PARTIAL, read_card
from embae.datasets.errors import DataError
from embae.datasets.index import Index
from embae.datasets.index_writer import Columns, sync_folder, write_index, write_whole
from embae.datasets.progress import Report, note, progress
from embae.datasets.records import ROLES, SPLITS, Record
from embae.datasets.shard_plan import ShardPlan, plan_shards
from embae.datasets.shard_writer import PART, TEMPORARY, ShardTask, part_path, start_worker, write_shard, writing
from embae.datasets.sole_writer import sole_writer

PLAN = "plan.txt"
SKIPPED = "skipped.txt"
_NAMED = 10  # bad images named in one message


def write_shards(
    name: str,
    records: Sequence[Record],
    out: Path,
    *,
    source: Mapping[str, Any],
    size: tuple[int, int] | None = None,
    images_per_shard: int = 4096,
    workers: int | None = None,
    skip_bad: bool = False,
    licence: str | None = None,
    notes: str | None = None,
    progress: Report = progress,
) -> Index:
    """Writes ``<out>/<name>``: tars, ``index.arrow``, ``dataset.yaml``.

    Work goes on in ``<out>/<name>.partial``, which is renamed when complete. Started again after an interruption with
    the same records and options, it keeps the shards that are finished; on a complete dataset it does nothing.

    Args:
        name: The dataset's name: letters, digits, ``_`` and ``-``.
        records: Its images, in any order.
        out: The folder of all datasets.
        source: Where the images came from (reader, root, options), kept in the card; plain values only.
        size: (height, width) in pixels to store the images at; None keeps the originals.
        images_per_shard: At most this many images in one tar.
        workers: Processes; None takes all cores this process may use.
        skip_bad: Leave out what cannot be decoded and list it in ``skipped.txt``, instead of refusing.
        licence: Terms of the images, kept in the card.
        notes: What later users should know, kept in the card.
        progress: How to report; gets the images as they are done.

    Raises:
        DataError: Records or images that cannot be used, a folder that holds something else, another process writing
            the same dataset, or a disk that is full.
    """
    plan = plan_shards(name, records, size, images_per_shard)
    folder, partial = out / name, out / (name + PARTIAL)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {key: value for key, value in (("licence", licence), ("notes", notes)) if value is not None}
    with writing(partial), sole_writer(out / f".{name}.lock"):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            return _finished(folder, plan, skip_bad)
        if not _prepare(partial, plan):
            done = [stem for stem in plan.shards if _is_done(partial, stem)]
            if done:
                note(f"{name}: going on after an interruption, {len(done)} of {len(plan.shards)} shards are finished")
            tasks = [
                ShardTask(partial, stem, name, shard, size, skip_bad)
                for stem, shard in plan.shards.items()
                if stem not in set(done)
            ]
            bad = _write_all(tasks, workers or len(os.sched_getaffinity(0)), f"sharding {name}", progress)
            if bad and not skip_bad:
                raise DataError(_bad(name, bad, plan.images))
            _write_skipped(partial, bad)
            columns = _assemble(partial, plan, name)
            about = {"plan": plan.digest, "skipped": len(bad), **about}
            write_index(partial, name, columns, source=source, about=about)
        _clean(partial)
        partial.rename(folder)
        sync_folder(out)
    return Index.open(folder)


def _finished(folder: Path, plan: ShardPlan, skip_bad: bool) -> Index:
    """What is there already is the answer if it was made from the same records with the same options."""
    index = Index.open(folder)
    if index.card.get("plan") != plan.digest:
        raise DataError(
            f"{folder} exists and was made from other records or with other options (it has {len(index):,} images from "
            f"{index.card.get('source')}; now {plan.images:,} images); give another name, or remove the folder first"
        )
    skipped = index.card.get("skipped", 0)
    if skipped and not skip_bad:
        raise DataError(
            f"{folder} exists and was made without {skipped} bad images (see {SKIPPED} in it); accept that with "
            "--skip-bad, or mend them, remove the folder and shard again"
        )
    note(f"{folder} is complete already: {len(index):,} images of the same records and options; nothing to do")
    return index


def _prepare(partial: Path, plan: ShardPlan) -> bool:
    """Makes ready the folder to work in, emptied if it is of another plan; True if it only wants renaming."""
    if partial.exists():
        names = {path.name for path in partial.iterdir()}
        if CARD in names:
            if read_card(partial).get("plan") == plan.digest:
                return True
        elif PLAN in names:
            if (partial / PLAN).read_text(encoding="utf-8") == plan.digest:
                for path in partial.glob(f"*{TEMPORARY}"):
                    path.unlink()
                return False
        elif names - {PLAN + TEMPORARY}:
            raise DataError(f"{partial} exists and is not of embae shard; it works in a folder of this name: remove it")
        shutil.rmtree(partial)
    partial.mkdir()
    write_whole(partial / PLAN, lambda file: file.write(plan.digest.encode()))
    return False


def _is_done(partial: Path, stem: str) -> bool:
    """Whether a shard is finished. One that left out bad images is not: they may have been mended since."""
    try:
        part = json.loads(part_path(partial, stem).read_text(encoding="utf-8"))
        return not part["bad"] and (partial / f"{stem}.tar").stat().st_size == part["bytes"]
    except (FileNotFoundError, ValueError, KeyError):  # not there, or damaged by the disk
        return False


def _write_all(tasks: list[ShardTask], workers: int, label: str, report: Report) -> list[str]:
    """Writes shards in worker processes; returns a sentence for each bad image."""
    if not tasks:
        return []
    # Not forked from here: the parent may be large, with threads. The server loads the libraries once for all workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["webdataset", write_shard.__module__])
    counter = context.Value("q", 0)
    stop, alive = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(min(workers, len(tasks)), context, start_worker, (stop, counter))
    shown = 0
    try:
        with report(label, sum(len(task.records) for task in tasks)) as advance:
            futures: list[Future[list[str]]] = [executor.submit(write_shard, task) for task in tasks]
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                count = counter.get_obj().value  # without its lock, which a killed worker may have kept
                advance(count - shown)
                shown = count
                for future in done:
                    future.result()
        executor.shutdown()
        return [sentence for future in futures for sentence in future.result()]
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


def _bad(name: str, bad: list[str], images: int) -> str:
    lines = [f"{name}: {len(bad):,} of {images:,} images cannot be used:", *bad[:_NAMED]]
    if len(bad) > _NAMED:
        lines.append(f"and {len(bad) - _NAMED:,} more")
    lines.append("Mend or remove them and start again (finished shards are kept), or leave them out with --skip-bad.")
    return "\n  ".join(lines[:-1]) + "\n" + lines[-1]


def _write_skipped(partial: Path, bad: list[str]) -> None:
    path = partial / SKIPPED
    path.unlink(missing_ok=True)
    if bad:
        write_whole(path, lambda file: file.write("".join(f"{sentence}\n" for sentence in bad).encode()))


def _assemble(partial: Path, plan: ShardPlan, name: str) -> Columns:
    """The index, from its parts."""
    kept: list[Record] = []
    shards: list[str] = []
    numbers: list[int] = []
    values: dict[str, list[int]] = {column: [] for column in ("offset", "size", "crc32", "height", "width")}
    for stem, records in plan.shards.items():
        part = json.loads(part_path(partial, stem).read_text(encoding="utf-8"))
        if not part["kept"]:
            continue  # all of its images were bad: there is no tar
        kept.extend(records[position] for position in part["kept"])
        numbers.extend([len(shards)] * len(part["kept"]))
        shards.append(f"{stem}.tar")
        for column, entries in values.items():
            entries.extend(part[column])
    if not kept:
        raise DataError(f"{name}: not one of {plan.images:,} images could be decoded; see {partial / SKIPPED}")
    return Columns(
        keys=pa.array([record.key for record in kept], type=pa.string()),
        split=np.array([SPLITS.index(record.split) for record in kept], dtype=np.int8),
        pid=np.array([-1 if record.pid is None else record.pid for record in kept], dtype=np.int64),
        labelled=np.array([record.pid is not None for record in kept], dtype=np.bool_),
        camid=np.array([record.camid for record in kept], dtype=np.int32),
        role=np.array([ROLES.index(record.role) for record in kept], dtype=np.int8),
        shard=np.array(numbers, dtype=np.int32),
        offset=np.array(values["offset"], dtype=np.int64),
        size=np.array(values["size"], dtype=np.int32),
        crc32=np.array(values["crc32"], dtype=np.uint32),
        height=np.array(values["height"], dtype=np.int32),
        width=np.array(values["width"], dtype=np.int32),
        shards=shards,
    )


def _clean(partial: Path) -> None:
    """Removes what only an unfinished dataset needs."""
    for path in partial.iterdir():
        if path.name == PLAN or path.name.endswith((PART, TEMPORARY)):
            path.unlink()
