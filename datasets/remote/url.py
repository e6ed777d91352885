"""Datasets that are not on this machine: urls of object stores and web servers, read through fsspec."""

from __future__ import annotations

import errno
import posixpath
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from embae.datasets.errors import DataError
from embae.datasets.remote.cache import Cache

# Scheme → package that it needs, where that is not ours already. No others: some that fsspec knows run programs.
SCHEMES = {"s3": "s3fs", "gs": "gcsfs", "http": "", "https": "", "file": "", "memory": ""}
_URL = re.compile(r"(?P<scheme>[a-z0-9]+)://(?P<rest>[A-Za-z0-9._~!$&'()*+,;=:%/\[\]-]*)")
TRIES, PAUSE_S = 5, 0.5  # the pause doubles from try to try

T = TypeVar("T")


class Missing(DataError):
    """A file is not where a url points."""


@dataclass(frozen=True)
class Url:
    """What `Path` is for folders: ``/`` goes down, and text is what a message calls it.

    Attributes:
        text: The url.
        cache: Where copies of what is read lie on this machine.
    """

    text: str
    cache: Cache = field(default=Cache(), repr=False)

    def __truediv__(self, name: str) -> Url:
        return replace(self, text=f"{self.text}/{name}")

    def __str__(self) -> str:
        return self.text

    def beside(self, path: str) -> Url:
        """The url of a relative path, which may lead up.

        Raises:
            DataError: It leads out of the server or bucket, or is no plain path.
        """
        scheme, _, place = self.text.partition("://")
        found = posixpath.normpath(posixpath.join(place, path))
        if posixpath.isabs(path) or found.split("/")[0] != place.split("/")[0]:
            raise DataError(f"{self}: the path {path[:200]!r} from there leads out of {scheme}://{place.split('/')[0]}")
        return location(f"{scheme}://{found}", self.cache)  # type: ignore[return-value]

    def read(self, most: int) -> bytes:
        """A small file.

        Raises:
            Missing: It is not there.
            DataError: It cannot be read, or is larger.
        """
        def read(store: Any) -> bytes:
            with store.open(self.text, "rb", block_size=0 if self._streams else None) as file:
                return bytes(file.read(most + 1))

        data = self._tried(read)
        if len(data) > most:
            raise DataError(f"{self}: larger than {most:,} bytes; this is no file of a sharded dataset")
        return data

    def version(self) -> str:
        """Text that changes when the file does, as far as the store says: length, and tag or date."""
        info = {key.lower().replace("-", ""): value for key, value in self._tried(lambda s: s.info(self.text)).items()}
        tags = [info[key] for key in ("etag", "lastmodified", "updated", "mtime", "created") if info.get(key)]
        return f"{info.get('size')} {tags[0] if tags else ''}"

    def copy(self, to: Path, most: int) -> None:
        """Copies the file, over what is there.

        Raises:
            Missing: It is not there.
            OSError: The disk is full.
            DataError: It cannot be read, or is larger than `most` bytes.
        """
        from fsspec.callbacks import Callback

        class Bounded(Callback):  # else whoever serves it could fill the disk
            def relative_update(self, inc: int = 1) -> None:
                super().relative_update(inc)
                if self.value > most:
                    raise DataError(f"{url}: larger than the {most:,} bytes that data.cache may hold")

        url = self
        self._tried(lambda store: store.get_file(self.text, str(to), callback=Bounded()))

    @property
    def _streams(self) -> bool:
        return self.text.startswith("http")  # a server need not know ranges

    def _tried(self, read: Callable[[Any], T]) -> T:
        """What is read, after some tries where it may yet come."""
        pause = PAUSE_S
        for left in reversed(range(TRIES)):
            try:
                return read(self._store())
            except DataError:
                raise
            except FileNotFoundError as error:
                raise Missing(f"{self}: no such file; see that all of the dataset was copied there, under the names "
                              "that embae shard gave") from error
            except Exception as error:  # every store has errors of its own
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                status = getattr(error, "status", None)
                refused = status in range(400, 500) and status not in (408, 429)
                if refused or not left or isinstance(error, (PermissionError, TypeError, ValueError)):
                    tried = "" if refused else f", tried {TRIES - left} times"
                    raise DataError(f"{self}: cannot be read ({type(error).__name__}: {' '.join(str(error).split())}"
                                    f"{tried}); see that this machine reaches it, with credentials from environment "
                                    "or files as the store wants them") from error
            time.sleep(pause)
            pause *= 2
        raise AssertionError

    def _store(self) -> Any:
        import fsspec
        scheme = self.text.partition("://")[0]
        options: dict[str, Any] = {"use_listings_cache": False}
        if self._streams:
            import aiohttp
            # Large shards take their time, silence does not. Proxies and netrc count as for other programs.
            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60),
                                        "trust_env": True}
        try:
            return fsspec.filesystem(scheme, **options)
        except ImportError as error:
            raise DataError(f"{self}: {scheme}:// needs the package {SCHEMES[scheme]} ({error}); install it with "
                            f"pip install {SCHEMES[scheme]}") from error


def location(text: str | Path, cache: Cache | None = None) -> Path | Url:
    """A folder's path, or a url where the text has ``://``.

    Args:
        text: As a recipe or a command line has it.
        cache: Where copies lie, for a url.

    Raises:
        DataError: A url of a scheme that is not read, or with a password, a query or another url in it. The message
            holds no more of it than its scheme.
    """
    if isinstance(text, Path) or "://" not in text:
        return Path(text)
    scheme = re.sub(r"[^a-z0-9:]", "", text.partition("://")[0])[:20]
    found = _URL.fullmatch(text)
    if "::" in text or not found or found["scheme"] not in SCHEMES:
        if "@" in text:
            raise DataError(f"the url {scheme}://… holds a user or password (@); credentials come from environment or "
                            "files, as the store's package says, never from a url, which recipes and messages show")
        raise DataError(f"the url {scheme}://… cannot be read; wanted one of {', '.join(SCHEMES)} before ://, and "
                        "plain characters, with no query (?), fragment (#) or chain (::)")
    rest = found["rest"].rstrip("/")
    if not rest.strip("/") and found["scheme"] != "memory":
        raise DataError(f"the url {scheme}:// names no folder or bucket")
    return Url(f"{found['scheme']}://{rest}", cache or Cache())
