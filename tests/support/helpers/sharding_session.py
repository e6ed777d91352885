"""Images to shard, and a process that shards them and may be stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embae.datasets.index.arrow_index import Index
from embae.datasets.index.records import FileImage, Record
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.write_shards import write_shards

SLOW = textwrap.dedent("""
    import os, secrets, signal, sys, time
    from dataclasses import dataclass
    from pathlib import Path
    from embae.datasets.index.records import FileImage, Record
    from embae.datasets.sharding.options import ShardOptions
    from embae.datasets.sharding.write_shards import write_shards

    class Image(FileImage):
        def read(self):
            if sys.argv[3] == "die":
                os.kill(os.getpid(), 9)
            while sys.argv[3] == "pause" and not Path(sys.argv[2], "../go").exists():
                time.sleep(0.05)
            if sys.argv[3] == "slow" and int(self.path.name[0]) > 1:
                time.sleep(60)
            return super().read()

    if __name__ == "__main__":
        # As at a terminal. A shell that starts tests in the background hands SIGINT down ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        secrets.randbelow = lambda n: 0  # who joins begins with the first shard
        records = []
        for line in Path(sys.argv[1]).read_text().splitlines():
            key, split, pid, camid, role, path = line.split()
            pid = None if pid == "None" else int(pid)
            records.append(Record(key, split, pid, int(camid), Image(Path(path)), role))
        options = ShardOptions(images_per_shard=5, workers=2, join="join" in sys.argv)
        write_shards("set", records, Path(sys.argv[2]), source={"reader": "test"}, options=options)
""")


def make_images(folder: Path, identities: int = 6, images: int = 4) -> list[Record]:
    """JPEG files of a few kB; the last two images belong to nobody, half of the others are for testing."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(identities * images):
        pid, shot = divmod(number, images)
        path = folder / f"{pid}_{shot}.jpg"
        pixels = np.random.default_rng(number).integers(0, 256, (12, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 64), Image.Resampling.BILINEAR).save(path, quality=90)
        split = "train" if pid < identities // 2 else "gallery" if shot else "query"
        known = number < identities * images - 2
        role = "person" if known else "junk"
        records.append(Record(f"p{pid:02d}_{shot}", split, pid if known else None, shot % 2, FileImage(path), role))
    return records


def shard(records: list[Record], out: Path, reader: str = "test", **options: Any) -> Index:
    options = {"images_per_shard": 5, "workers": 2, **options}
    return write_shards("set", records, out, source={"reader": reader}, options=ShardOptions(**options))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def start(records: list[Record], out: Path, how: str = "slow", *more: str) -> subprocess.Popen[str]:
    out.mkdir(parents=True, exist_ok=True)
    script, listing = out.parent / "slow.py", out.parent / "records.txt"
    script.write_text(SLOW)
    listing.write_text("".join(f"{r.key} {r.split} {r.pid} {r.camid} {r.role} {r.image}\n" for r in records))
    command = [sys.executable, str(script), str(listing), str(out), how, *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def session(leader: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                state, _, _, sid = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:4]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(sid) == leader and state != "Z":
                found.append(int(name))
    return found
