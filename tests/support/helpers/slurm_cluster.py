"""A private SLURM cluster: Debian's munged, slurmctld and a slurmd on each node of a `network`."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.network import Network, until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
NODES = ("node1", "node2")
CPUS, GPUS = 4, 2  # of each node, whatever this machine has

# No accounting, no cgroups, no systemd; decisions at once; a requeued job waits until its old credential has expired,
# which takes two minutes by default. Partitions differ in who may push whom out: high takes from low.
_CONF = """
ClusterName=test
SlurmctldHost=control(10.77.0.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
MinJobAge=3600
SlurmdTimeout=10
MessageTimeout=10
TCPTimeout=3
GresTypes=gpu
NodeName=node[1-2] NodeAddr=10.77.0.[1-2] CPUs={cpus} RealMemory=4000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=low  Nodes=ALL State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL State=UP PriorityTier=100 PreemptMode=OFF
"""


class Cluster:
    """The cluster, and what a user does on its login node, which is the controller's.

    Attributes:
        network: Its nodes, which tests switch off and on.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._env = {key: value for key, value in os.environ.items()
                     if not key.startswith(("SLURM", "SBATCH", "SRUN", "EMBAE_"))}
        self._env |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{self._env['PATH']}:/usr/sbin:/sbin"}
        (folder / "slurm.conf").write_text(_CONF.format(folder=folder, cpus=CPUS, gpus=GPUS))
        for gpu in range(GPUS):  # slurmd wants character devices; these are /dev/null
            os.mknod(folder / f"gpu{gpu}", 0o20666, os.makedev(1, 3))
        (folder / "gres.conf").write_text(f"NodeName=node[1-2] Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir()
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o400)
        self.network = Network(folder, NODES, switch="control")
        self._log = (folder / "daemons.log").open("a")
        self._munged: subprocess.Popen[bytes] | None = None
        try:
            self._munged = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "munged", "--foreground", "--force",
                 f"--key-file={folder}/munge.key", f"--socket={folder}/munge.sock", f"--pid-file={folder}/munge.pid",
                 f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munge.log"],
                env=self._env, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True)
            until((folder / "munge.sock").exists, 20, self._logs)
            self.network.switch.start("slurmctld", "-D", "-i", log=self._log, env=self._env)
            for node in NODES:
                self._start_slurmd(node)
            until(lambda: self.states(*NODES) == {"idle"}, 60, self._logs)
        except BaseException:
            self.close()
            raise

    def _start_slurmd(self, node: str) -> None:
        self.network.nodes[node].start("slurmd", "-D", "-N", node, log=self._log, env=self._env)

    def _logs(self) -> str:
        return "the cluster\n" + "\n".join(f"== {path.name}\n" + "\n".join(path.read_text().splitlines()[-15:])
                                           for path in self._folder.glob("*.log"))

    def run(self, *command: object, cwd: Path | None = None, timeout: float = 60, **env: str) -> str:
        """A user's command, and what it printed."""
        done = self.attempt(*command, cwd=cwd, timeout=timeout, **env)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def attempt(self, *command: object, cwd: Path | None = None, timeout: float = 60,
                **env: str) -> subprocess.CompletedProcess[str]:
        """A user's command, which may fail."""
        enter = ["nsenter", "--target", str(self.network.switch.pid), "--net", "--uts"]
        return subprocess.run([*enter, *map(str, command)], env={**self._env, **env}, capture_output=True, text=True,
                              timeout=timeout, stdin=subprocess.DEVNULL, cwd=cwd or self._folder)

    def states(self, *nodes: str) -> set[str]:
        """What SLURM says of nodes: idle, down …"""
        done = self.attempt("sinfo", "--noheader", "--Node", "--partition=main", f"--nodes={','.join(nodes)}",
                            "--format=%T")
        return set(done.stdout.split())

    def submit(self, *arguments: object, cwd: Path, **env: str) -> str:
        """``sbatch ARGUMENTS``; the job's number."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd, **env).strip()

    def job(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        shown = self.run("scontrol", "show", "job", job)
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def wait(self, job: str, seconds: float = 150, states: Sequence[str] = ()) -> dict[str, str]:
        """Waits until a job is in one of the states; by default, until it has ended for good."""
        def reached() -> dict[str, str] | None:
            now = self.job(job)
            ended = now["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED",
                                            "PREEMPTED", "NODE_FAIL")
            if states and ended and now["JobState"] not in states:
                raise AssertionError(f"job {job} has ended: {now}")
            return now if (now["JobState"] in states if states else ended) else None
        found: Any = until(reached, seconds, lambda: f"job {job}: {self.job(job)}")
        return dict(found)

    def restart_node(self, node: str) -> None:
        """A node that was switched off comes up and reports to the controller."""
        self.network.switch_on(node)
        self._start_slurmd(node)

    def close(self) -> None:
        """Ends all of it."""
        self.network.close()
        if self._munged:
            self._munged.kill()
            self._munged.wait()
        self._log.close()
