"""Computers of a small network: namespaces of the kernel, each with a host name, an address and a cable of its own.

Nothing has a name outside and nothing is left behind: a node is one process, and with it go all that ran on it, its
interfaces and its mounts. That process ends with the one that started it. Needs root and `ip`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

# The namespace's first process: everything that is orphaned on the node becomes its child, and bash reaps.
_INIT = 'mount --bind "$1" /etc/hosts && hostname "$2" && echo up && while :; do sleep 3600 & wait $!; done'


def until(condition: Callable[[], Any], seconds: float, what: str | Callable[[], str]) -> Any:
    """What the condition returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what if isinstance(what, str) else what()}")
        time.sleep(0.1)
    return found


class Node:
    """A computer: its processes see no others, and only its own network.

    Attributes:
        name: Its host name, which every node of the network resolves.
        address: Its IPv4 address.
    """

    def __init__(self, name: str, address: str, hosts: Path) -> None:
        self.name, self.address, self._hosts = name, address, hosts
        self._holder: subprocess.Popen[str] | None = None
        self._inside = 0
        self.switch_on()

    def switch_on(self) -> None:
        """Starts it, not wired yet."""
        namespaces = ["--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", *namespaces, "bash", "-c", _INIT, "node", str(self._hosts),
             self.name], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self._holder.stdout and self._holder.stdout.readline() == "up\n", f"{self.name} did not start"
        pid = self._holder.pid
        self._inside = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        self.run("ip", "link", "set", "lo", "up")

    def switch_off(self) -> None:
        """A power cut: everything that runs on it is gone at once."""
        if self._holder:
            self._holder.kill()
            self._holder.wait()
            until(lambda: not Path(f"/proc/{self._inside}").exists() or _is_zombie(self._inside), 10,
                  f"the end of {self.name}")
            assert self._holder.stdout
            self._holder.stdout.close()
            self._holder = None

    @property
    def pid(self) -> int:
        """The process that its namespaces belong to, as this system counts."""
        return self._inside

    def start(self, *command: object, log: IO[Any] | int | None = None, cwd: Path | None = None,
              **popen: Any) -> subprocess.Popen[str]:
        """Starts a command on it, its output going to the log."""
        # Not nsenter's --wd, a folder of the mounts that are left: no file could be moved from there to here.
        enter = ["nsenter", "--target", str(self.pid), "--net", "--uts", "--mount", "--pid",
                 "sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(cwd or Path.cwd())]
        return subprocess.Popen([*enter, *map(str, command)], stdin=subprocess.DEVNULL, stdout=log,
                                stderr=subprocess.STDOUT if log is not None else None, text=True, **popen)

    def find(self, *words: str) -> list[int]:
        """Processes on it whose command lines begin with these words, as this system counts."""
        mine, wanted = os.readlink(f"/proc/{self.pid}/ns/pid"), b"\0".join(map(os.fsencode, words))
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                here = os.readlink(process / "ns" / "pid") == mine
                if here and (process / "cmdline").read_bytes().startswith(wanted):
                    found.append(int(process.name))
        return found

    def run(self, *command: object, timeout: float = 60, **popen: Any) -> str:
        """Runs a command on it, and returns what it printed."""
        process = self.start(*command, log=subprocess.PIPE, **popen)
        try:
            said, _ = process.communicate(timeout=timeout)
        finally:
            process.kill()
        assert process.returncode == 0, f"{self.name}: {' '.join(map(str, command))}: {process.returncode}: {said}"
        return said


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Network:
    """Nodes around a switch, which is a node itself; no way leads out."""

    def __init__(self, folder: Path, names: Sequence[str], switch: str = "switch") -> None:
        addresses = {switch: "10.77.0.254", **{name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}}
        hosts = folder / "hosts"
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{where} {name}\n" for name, where in addresses.items()))
        self.nodes: dict[str, Node] = {}
        try:
            self.switch = Node(switch, addresses[switch], hosts)
            for command in ("link add bridge type bridge", f"addr add {self.switch.address}/24 dev bridge",
                            "link set bridge up"):
                self.switch.run("ip", *command.split())
            for name in names:
                self.nodes[name] = Node(name, addresses[name], hosts)
                self._wire(name)
        except BaseException:
            self.close()
            raise

    def _wire(self, name: str) -> None:
        node = self.nodes[name]
        # As a machine's card has, one address for good: the others would send to a former one for a while.
        card = "02:00:" + ":".join(f"{int(part):02x}" for part in node.address.split("."))
        subprocess.run(["ip", "link", "add", "eth0", "address", card, "netns", str(node.pid), "type", "veth",
                        "peer", "name", name, "netns", str(self.switch.pid)], check=True)
        self.switch.run("ip", "link", "set", name, "master", "bridge", "up")
        node.run("ip", "addr", "add", f"{node.address}/24", "dev", "eth0")
        node.run("ip", "link", "set", "eth0", "up")

    def cut(self, name: str) -> None:
        """Unplugs a node: what it sends and what is sent to it is lost, and nobody is told."""
        self.switch.run("ip", "link", "set", name, "down")

    def mend(self, name: str) -> None:
        """Plugs it in again."""
        self.switch.run("ip", "link", "set", name, "up")

    def switch_on(self, name: str) -> None:
        """A node that was switched off comes up again."""
        self.nodes[name].switch_on()
        self._wire(name)

    def close(self) -> None:
        """Switches everything off."""
        for node in [*self.nodes.values(), *([self.switch] if hasattr(self, "switch") else [])]:
            node.switch_off()


def missing(*programs: str) -> str:
    """Why networks cannot be made here; empty if they can.

    Args:
        programs: What else is needed.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux, to make network namespaces"
    gone = [name for name in ("ip", "unshare", "nsenter", "setpriv", *programs)
            if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")]
    return f"needs {', '.join(gone)}; the README's section on testing says how to install it" if gone else ""
