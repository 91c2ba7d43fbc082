#!/usr/bin/env python3
"""A real SLURM cluster of several nodes on one machine, to try job scripts on: no service, nothing outside one folder.

    slurm/local/install                    # once, as root: Debian's packages
    slurm/local/cluster.py up --nodes 3
    source /tmp/gsforge-slurm/env          # sbatch, squeue and scontrol of this shell now mean this cluster
    slurm/local/cluster.py down

Needs Python 3.11 alone, not gsforge.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path("/tmp/gsforge-slurm")
PORT = 17000
PROGRAMS = ("slurmctld", "slurmd", "srun", "munged", "mungekey")
MARK = "GSFORGE_LOCAL_SLURM"
START_SECONDS, STOP_SECONDS = 30, 10
# Cores are only counted, never bound; a run of two ranks must fit on a node of a small machine.
CPUS, GPUS = 8, 2

SLURM_CONF = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
AuthType=auth/munge
# A job that is requeued waits until its credential has expired, otherwise two minutes.
AuthInfo=socket={root}/munge/socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/%n/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdPidFile={root}/%n/slurmd.pid
SlurmdLogFile={root}/%n/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
JobRequeue=1
KillWait=30
SlurmdTimeout=15
MinJobAge=86400
FirstJobId={first_job}
SchedulerParameters=batch_sched_delay=0,sched_interval=3,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=work Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Gres=gpu:{gpus} State=UNKNOWN"


class Cluster:
    """A cluster below one folder; as a context it is up inside and gone after.

    Args:
        root: folder of everything: configuration, keys, state and logs. Short, for sockets are made in it.
        nodes: number of nodes, named node1, node2 and so on.
        port: of the controller; those above it are the nodes'.
        first_job: number of the first job. Jobs of two clusters on one machine that have the same would meet at the
            same port.
    """

    def __init__(self, root: Path = ROOT, nodes: int = 3, port: int = PORT, first_job: int = 1):
        self.root, self.port, self.first_job = root.resolve(), port, first_job
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]

    def __enter__(self) -> "Cluster":
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def variables(self) -> dict[str, str]:
        """Environment of commands that talk to this cluster, and of jobs: the node names are in no hosts file.

        Returns:
            Names and values.
        """
        return {
            "SLURM_CONF": str(self.root / "slurm.conf"),
            "GSFORGE_MASTER_ADDR": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
        }

    def run(self, *command: str) -> str:
        """Run a SLURM command.

        Args:
            *command: such as "scontrol", "show", "job", "1".

        Returns:
            What it printed.

        Raises:
            subprocess.CalledProcessError: when it fails.
        """
        environment = os.environ | self.variables()
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    def up(self) -> None:
        """Start all daemons and wait until every node is idle.

        Raises:
            RuntimeError: when something is missing, a cluster is up in the folder, or it does not come up.
        """
        if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
            raise RuntimeError(f"{', '.join(missing)} not found: run slurm/local/install as root")
        if os.geteuid() != 0:
            raise RuntimeError("SLURM's daemons start jobs as their users: run this as root")
        if self._processes():
            raise RuntimeError(f"a cluster is up in {self.root}: slurm/local/cluster.py down --root {self.root}")
        if self.root.exists() and any(self.root.iterdir()):
            if not (self.root / "slurm.conf").exists():
                raise RuntimeError(f"{self.root} holds something else: give a --root that is empty, or none yet")
            shutil.rmtree(self.root)
        self._write_files()
        munge = self.root / "munge"
        self._daemon("mungekey", "--create", "--keyfile", str(munge / "key"))
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._daemon("munged", "--force", *(f"--{option}={munge / name}" for option, name in files.items()))
        self._daemon("slurmctld", "-c", "-f", str(self.root / "slurm.conf"))
        for node in self.nodes:
            self.start_node(node)
        deadline = time.monotonic() + START_SECONDS
        while self.states() != dict.fromkeys(self.nodes, "idle"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"not up after {START_SECONDS} s: {self.states()}; logs are in {self.root}")
            time.sleep(0.2)

    def states(self) -> dict[str, str]:
        """State of every node.

        Returns:
            Such as {"node1": "idle"}; empty when the controller does not answer.
        """
        try:
            lines = self.run("sinfo", "--noheader", "--Node", "--partition=work", "--format=%N %T").splitlines()
        except subprocess.CalledProcessError:
            return {}
        return dict(line.split() for line in lines)

    def start_node(self, name: str) -> None:
        """Start a node's daemon, at first or after `cut_node`.

        Args:
            name: such as node2.
        """
        self._daemon("slurmd", "-N", name, "-f", str(self.root / "slurm.conf"))

    def cut_node(self, name: str) -> None:
        """Kill all processes of a node at once, as when its power fails; the controller has to notice by itself.

        Args:
            name: such as node2.
        """
        for number in self._processes(name):
            _kill(number)

    def down(self) -> None:
        """End the jobs and daemons of this cluster; the folder stays until the next `up`, for its logs."""
        deadline = time.monotonic() + STOP_SECONDS
        while numbers := self._processes():
            for number in numbers:
                _kill(number)
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes {numbers} do not end")
            time.sleep(0.1)

    def _write_files(self) -> None:
        host = socket.gethostname()
        for folder in ("munge", "state", "dev", *(f"{node}/spool" for node in self.nodes)):
            (self.root / folder).mkdir(parents=True)
        for number in range(GPUS):
            (self.root / "dev" / f"nvidia{number}").touch()
        ports = range(self.port + 1, self.port + 1 + len(self.nodes))
        nodes = [
            NODE.format(name=name, host=host, port=port, cpus=CPUS, gpus=GPUS)
            for name, port in zip(self.nodes, ports, strict=True)
        ]
        text = SLURM_CONF.format(
            host=host, port=self.port, root=self.root, nodes="\n".join(nodes), first_job=self.first_job
        )
        (self.root / "slurm.conf").write_text(text)
        (self.root / "gres.conf").write_text(f"Name=gpu File={self.root}/dev/nvidia[0-{GPUS - 1}]\n")
        (self.root / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        variables = (f"export {name}={value}\n" for name, value in self.variables().items())
        (self.root / "env").write_text("".join(variables))

    def _daemon(self, *command: str) -> None:
        log = self.root / "daemons.log"
        with log.open("a") as output:
            # Not seen by jobs, which get the environment of sbatch.
            environment = os.environ | self.variables() | {MARK: str(self.root)}
            done = subprocess.run(command, env=environment, stdout=output, stderr=output, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed with code {done.returncode}:\n{log.read_text()}")

    def _processes(self, node: str | None = None) -> list[int]:
        """Daemons, and what they started, of the whole cluster or of one node; never the shell that uses it."""
        return [
            int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and self._owns(entry, node)
        ]

    def _owns(self, entry: Path, node: str | None) -> bool:
        try:
            variables = (entry / "environ").read_text(errors="replace").split("\0")
            folder = (entry / "cwd").readlink()
        except OSError:  # it has ended
            return False
        if f"{MARK}={self.root}" in variables:  # a daemon; those of a node run in the node's folder
            return node is None or folder == self.root / node
        if f"SLURM_CONF={self.root}/slurm.conf" not in variables:
            return False
        names = [value for name, _, value in (text.partition("=") for text in variables) if name == "SLURMD_NODENAME"]
        return bool(names) if node is None else names == [node]


def _kill(number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, signal.SIGKILL)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="A real SLURM cluster of several nodes on this machine.")
    parser.add_argument("command", choices=("up", "down", "status"))
    parser.add_argument("--nodes", type=int, default=3, help="nodes to start (%(default)s)")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of everything the cluster writes (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=PORT, help="of the controller; the nodes use the next ones (%(default)s)"
    )
    options = parser.parse_args()
    cluster = Cluster(options.root, options.nodes, options.port)
    answer = ""
    try:
        if options.command == "up":
            cluster.up()
            answer = f"{options.nodes} nodes are up. In your shell: source {cluster.root / 'env'}\n"
        elif options.command == "down":
            cluster.down()
        else:
            answer = "".join(f"{node} {state}\n" for node, state in cluster.states().items()) or "down\n"
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(answer)


if __name__ == "__main__":
    main()
