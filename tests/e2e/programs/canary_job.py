"""A job that puts canaries into all that it can reach, and ends as its argument says."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

mode = sys.argv[1]
folder = Path("output") / mode
seed = Path("output/patients.csv").read_text().split("canary-")[1].split("-")[0]


def canary(kind: str) -> str:
    return f"canary-{seed}-{kind}"


def write(name: str | bytes, text: str) -> None:
    path = folder / os.fsdecode(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


print(canary("log"), flush=True)  # noqa: T201  a job's log is what it prints
print(canary("stderr"), file=sys.stderr, flush=True)  # noqa: T201  the same
os.environ[canary("environment")] = canary("environment")
subprocess.run([sys.executable, "-c", "pass", canary("argument")], check=True)
write(f"{canary('name')}.txt", canary("data"))
write(f"{canary('name')}.csv", f"row\n{canary('data')}\n")
write(f"{canary('folder')}/{canary('name')}.txt", canary("data"))

match mode:
    case "excluded":
        write(f"{canary('name')}-of-one.csv", f"patient_id,{canary('column')}\n1,{canary('data')}\n")
    case "bytes":
        write(os.fsencode(canary("name")) + b"\xff\n\x01.txt", canary("data"))
    case "unmatched":
        folder.rename(f"output/{canary('folder')}")
    case "exit":
        sys.exit(canary("exit"))
    case "raise":
        raise ValueError(canary("exception"))
    case "database":
        raise ConnectionError(f'password authentication failed for user "{canary("database-error")}"')
    case "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    case "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    case "memory":
        held = [bytearray(os.urandom(1 << 20)) for _ in range(1000)]
    case "link":
        (folder / f"{canary('name')}-link.txt").symlink_to("/etc/passwd")
    case "pipe":
        os.mkfifo(folder / f"{canary('name')}-pipe.txt")
    case "limit" | "hang":
        time.sleep(1000)
