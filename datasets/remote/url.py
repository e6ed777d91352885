"""Locations of datasets on other machines: urls of object stores and web servers, read through fsspec."""

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

# Scheme → the package it needs, unless embae requires that anyway. No other schemes: some of fsspec run programs.
SCHEMES = {"s3": "s3fs", "gs": "gcsfs", "http": "", "https": "", "file": "", "memory": ""}
_URL = re.compile(r"(?P<scheme>[a-z0-9]+)://(?P<rest>[A-Za-z0-9._~!$&'()*+,;=:%/\[\]-]*)")
ATTEMPTS, PAUSE_S = 5, 0.5  # the pause doubles after each attempt

T = TypeVar("T")


class Missing(DataError):
    """There is no file at a url."""


@dataclass(frozen=True)
class Url:
    """A remote file or folder, used like a `Path`: ``/`` appends a name, and messages show its text.

    Attributes:
        text: The url.
        cache: Where copies of remote files are stored on this machine.
    """

    text: str
    cache: Cache = field(default=Cache(), repr=False)

    def __truediv__(self, name: str) -> Url:
        return replace(self, text=f"{self.text}/{name}")

    def __str__(self) -> str:
        return self.text

    def resolve(self, path: str) -> Url:
        """The url of a path relative to this folder; ``..`` leads to the parent folder.

        Raises:
            DataError: The path leads out of the server or bucket, or is not a valid part of a url.
        """
        scheme, _, folder = self.text.partition("://")
        server = folder.split("/")[0]
        target = posixpath.normpath(posixpath.join(folder, path))
        if posixpath.isabs(path) or target.split("/")[0] != server:
            raise DataError(f"{self}: the path {path[:200]!r} from there leads out of {scheme}://{server}")
        return parse_location(f"{scheme}://{target}", self.cache)  # type: ignore[return-value]

    def read(self, most: int) -> bytes:
        """Reads a small file of at most ``most`` bytes.

        Raises:
            Missing: There is no such file.
            DataError: The file cannot be read, or is larger.
        """
        def read(store: Any) -> bytes:
            with store.open(self.text, "rb", block_size=0 if self._streams else None) as file:
                return bytes(file.read(most + 1))

        data = self._with_retries(read)
        if len(data) > most:
            raise DataError(f"{self}: larger than {most:,} bytes; this is not a file of a sharded dataset")
        return data

    def version(self) -> str:
        """Text that changes when the file changes, as far as the store knows: length, and tag or date."""
        answer = self._with_retries(lambda store: store.info(self.text))
        info = {key.lower().replace("-", ""): value for key, value in answer.items()}
        tags = [info[key] for key in ("etag", "lastmodified", "updated", "mtime", "created") if info.get(key)]
        return f"{info.get('size')} {tags[0] if tags else ''}"

    def download(self, to: Path, most: int) -> None:
        """Copies the file to a path, and replaces a file that already exists there.

        Raises:
            Missing: There is no such file.
            OSError: The disk is full.
            DataError: The file cannot be read, or is larger than ``most`` bytes.
        """
        from fsspec.callbacks import Callback

        class Bounded(Callback):  # a server must not be able to fill the disk
            def relative_update(self, inc: int = 1) -> None:
                super().relative_update(inc)
                if self.value > most:
                    raise DataError(f"{url}: larger than the {most:,} bytes that data.cache may hold")

        url = self
        self._with_retries(lambda store: store.get_file(self.text, str(to), callback=Bounded()))

    @property
    def _streams(self) -> bool:
        return self.text.startswith("http")  # a web server may not support ranges

    def _with_retries(self, read: Callable[[Any], T]) -> T:
        """Calls ``read`` with the store, again after errors that may be temporary."""
        pause = PAUSE_S
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                return read(self._store())
            except DataError:
                raise
            except FileNotFoundError as error:
                raise Missing(f"{self}: no such file; check that the whole dataset was copied there, with the "
                              "file names that embae shard gave") from error
            except Exception as error:  # each store has its own errors
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                status = getattr(error, "status", None)
                refused = status in range(400, 500) and status not in (408, 429)
                if refused or not attempts_left or isinstance(error, (PermissionError, TypeError, ValueError)):
                    attempts = "" if refused else f", tried {ATTEMPTS - attempts_left} times"
                    raise DataError(f"{self}: cannot be read ({type(error).__name__}: {' '.join(str(error).split())}"
                                    f"{attempts}); check that this machine can reach it, with credentials in "
                                    "environment variables or files as the store expects them") from error
            time.sleep(pause)
            pause *= 2
        raise AssertionError

    def _store(self) -> Any:
        import fsspec
        scheme = self.text.partition("://")[0]
        options: dict[str, Any] = {"use_listings_cache": False}
        if self._streams:
            import aiohttp
            # A large shard may take long, but data must keep arriving. Proxies and netrc apply as for other programs.
            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60),
                                        "trust_env": True}
        try:
            return fsspec.filesystem(scheme, **options)
        except ImportError as error:
            raise DataError(f"{self}: {scheme}:// needs the package {SCHEMES[scheme]} ({error}); install it with "
                            f"pip install {SCHEMES[scheme]}") from error


def parse_location(text: str | Path, cache: Cache | None = None) -> Path | Url:
    """Parses the location of a folder: a url if the text contains ``://``, else a path.

    Args:
        text: From a recipe or the command line.
        cache: Where copies of files of a url are stored.

    Raises:
        DataError: A url with an unsupported scheme, or with a password, a query or another url in it. The message
            shows only its scheme.
    """
    if isinstance(text, Path) or "://" not in text:
        return Path(text)
    scheme = re.sub(r"[^a-z0-9:]", "", text.partition("://")[0])[:20]
    match = _URL.fullmatch(text)
    if "::" in text or not match or match["scheme"] not in SCHEMES:
        if "@" in text:
            raise DataError(f"the url {scheme}://… contains a user or password (@); set credentials in environment "
                            "variables or files, as the store's package documents, never in a url, which recipes and "
                            "messages show")
        raise DataError(f"the url {scheme}://… cannot be read; expected one of {', '.join(SCHEMES)} before ://, and "
                        "plain characters, with no query (?), fragment (#) or chain (::)")
    rest = match["rest"].rstrip("/")
    if not rest.strip("/") and match["scheme"] != "memory":
        raise DataError(f"the url {scheme}:// names no folder or bucket")
    return Url(f"{match['scheme']}://{rest}", cache or Cache())
