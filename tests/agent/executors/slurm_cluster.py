"""A Slurm cluster of one node for the tests, from Debian's packages `slurm-wlm` and `munge`, without systemd.

Everything lies in one temporary folder, on free ports, with a key of its own; nothing of the machine's own Slurm or
munge is touched. It runs as whoever runs the tests. No cgroups (tests run in containers) and no accounting.
"""

import getpass
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
from attrs import field, frozen

PROGRAMS = ("sbatch", "scontrol", "squeue", "scancel", "slurmctld", "slurmd", "munged")
CPUS = 8
"""What the node claims to have, whatever the machine has: tests run side by side and mostly sleep."""
MEMORY_MB = 16_384
READY_SECONDS = 60.0
STOP_SECONDS = 15.0

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={base}/munge.socket
CredType=cred/munge
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=1,defer_batch=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
MessageTimeout=5
MinJobAge=300
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
PartitionName=short Nodes=ALL MaxTime=1 State=UP
PartitionName=closed Nodes=ALL MaxTime=INFINITE State=DOWN
"""


def is_installed() -> bool:
    """Whether a cluster can be started here."""
    return all(_find(program) for program in PROGRAMS)


@frozen
class Cluster:
    """The daemons and where they lie; made by `running`."""

    base: Path
    _processes: dict[str, subprocess.Popen[bytes]] = field(factory=dict)

    @property
    def conf(self) -> Path:
        """What SLURM_CONF has to be for every client."""
        return self.base / "slurm.conf"

    @property
    def environ(self) -> Mapping[str, str]:
        """An environment in which the clients find this cluster."""
        return os.environ | {"SLURM_CONF": str(self.conf)}

    def start(self, program: str) -> None:
        """Start one of `munged`, `slurmctld`, `slurmd`, and wait until the cluster answers or could."""
        if program == "munged":
            names = {
                "key-file": "munge.key",
                "socket": "munge.socket",
                "pid-file": "munge.pid",
                "seed-file": "munge.seed",
            }
            options = ["--foreground", "--force", f"--log-file={self.base}/munge.log"]
            options += [f"--{option}={self.base}/{name}" for option, name in names.items()]
        else:
            options = ["-D", "-f", str(self.conf), *(["-N", "node1"] if program == "slurmd" else [])]
        with (self.base / f"{program}.log").open("ab") as log:
            self._processes[program] = subprocess.Popen(
                [str(_find(program)), *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environ
            )

    def end(self, program: str) -> None:
        """End one daemon. Not by SIGKILL: slurmctld saves what it knows every few seconds, and tests are quicker."""
        process = self._processes.pop(program)
        process.terminate()
        process.wait(20)

    def ask(self, *command: str, check: bool = True) -> str:
        """What one of Slurm's commands says."""
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=60, check=False)
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout.strip()

    def wait_ready(self) -> None:
        """Sleep until the node takes jobs.

        :raises RuntimeError: it does not; with the ends of the logs.
        """
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self.ask("sinfo", "--noheader", "--partition=debug", "--format=%T", check=False) in {"idle", "mixed"}:
                return
            if any(process.poll() is not None for process in self._processes.values()):
                break
            time.sleep(0.1)
        raise RuntimeError("the cluster does not start:\n" + self._logs())

    def stop(self) -> None:
        """End all jobs, then the daemons."""
        if "slurmctld" in self._processes:
            self.ask("scancel", f"--user={getpass.getuser()}", check=False)
            # Slurm's process of a job that ends after slurmctld would wait for that for ever.
            deadline = time.monotonic() + STOP_SECONDS
            while self.ask("squeue", "--noheader", check=False) and time.monotonic() < deadline:
                time.sleep(0.1)
        for program in ("slurmctld", "slurmd", "munged"):
            if process := self._processes.pop(program, None):
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        for step in _steps(self.base):
            step.kill()

    def _logs(self) -> str:
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(self.base.glob("*.log")))


@contextmanager
def running() -> Iterator[Cluster]:
    """A cluster in a temporary folder, gone afterwards."""
    # Not pytest's folder: its path can be too long for a socket.
    base = Path(tempfile.mkdtemp(prefix="rap-slurm-"))
    cluster = Cluster(base)
    try:
        for folder in ("state", "spool"):
            (base / folder).mkdir()
        (base / "munge.key").write_bytes(os.urandom(128))
        (base / "munge.key").chmod(0o400)
        controller_port, node_port = _free_ports()
        cluster.conf.write_text(
            _CONF.format(
                base=base,
                host=socket.gethostname().split(".")[0],
                user=getpass.getuser(),
                controller_port=controller_port,
                node_port=node_port,
                cpus=CPUS,
                memory=MEMORY_MB,
            )
        )
        cluster.start("munged")
        _wait_for(base / "munge.socket")
        cluster.start("slurmctld")
        cluster.start("slurmd")
        cluster.wait_ready()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(base, ignore_errors=True)


def _wait_for(path: Path) -> None:
    for _ in itertools.takewhile(lambda _: not path.exists(), range(200)):
        time.sleep(0.05)


def _free_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in (one, other)]


def _steps(base: Path) -> list[psutil.Process]:
    """Slurm's own processes of jobs, which are nobody's children, and what runs below them."""
    found = []
    for process in psutil.process_iter():
        try:
            # It writes its own name over command line and environment; its socket lies in our spool folder.
            ours = process.name() == "slurmstepd" and any(
                str(each.laddr).startswith(str(base)) for each in process.net_connections("unix")
            )
            ours = ours or str(base) in " ".join(process.cmdline())
        except (psutil.Error, OSError):
            continue
        if ours:
            found += [process, *process.children(recursive=True)]
    return found


def _find(program: str) -> str | None:
    """Daemons lie where ordinary users' PATH does not lead."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin")
