"""Real git repositories for tests, made offline."""

import os
import subprocess
from pathlib import Path

from controller.sources.git import Git

ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "t",
    "GIT_AUTHOR_EMAIL": "t@example.org",
    "GIT_COMMITTER_NAME": "t",
    "GIT_COMMITTER_EMAIL": "t@example.org",
}


class Repository:
    """A bare repository below `base`, at the path that its URL has at GitHub."""

    def __init__(self, base: Path, name: str = "opensafely/study") -> None:
        self.url = f"https://github.com/{name}"
        self.path = base / name
        self.path.mkdir(parents=True)
        self.git("init", "--bare", "--quiet", "--initial-branch=main", ".")

    def git(self, *args: str, stdin: bytes = b"") -> str:
        """Output of one git command in the repository."""
        done = subprocess.run(
            ["git", *args], cwd=self.path, env=ENVIRONMENT, input=stdin, capture_output=True, check=True
        )
        return done.stdout.decode().strip()

    def commit(self, files: dict[str, bytes], *, branch: str | None = "main", parent: str | None = None) -> str:
        """Commit exactly these files on top of `parent` (or of the branch, as far as it exists)."""
        if parent is None and branch is not None:
            parent = self.git("for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}") or None
        listing = "".join(
            f"100644 blob {self.git('hash-object', '-w', '--stdin', stdin=body)}\t{name}\n"
            for name, body in files.items()
        )
        tree = self.git("mktree", stdin=listing.encode())
        parents = ["-p", parent] if parent else []
        made = self.git("commit-tree", tree, "-m", "a commit", *parents)
        if branch is not None:
            self.git("update-ref", f"refs/heads/{branch}", made)
        return made

    def history(self, length: int, files: dict[str, bytes]) -> list[str]:
        """Many commits on `main`, oldest first, quickly."""
        body = b"".join(b"blob\nmark :%d\ndata %d\n%s\n" % (n, len(b), b) for n, b in enumerate(files.values(), 1))
        names = "".join(f"M 100644 :{n} {name}\n" for n, name in enumerate(files, 1)).encode()
        for n in range(length):
            body += b"commit refs/heads/main\nmark :%d\ncommitter t <t@example.org> %d +0000\n" % (1000 + n, n)
            body += b"data 1\nx\n" + names + b"\n"
        self.git("fast-import", "--quiet", stdin=body)
        return self.git("rev-list", "--reverse", "main").split()


def source(base: Path, workdir: Path, **options: object) -> Git:
    """A `Git` that finds GitHub's repositories in the folder `base`."""
    defaults: dict[str, object] = {
        "allowed_orgs": ("opensafely", "opensafely-actions"),
        "environ": {"PATH": os.environ["PATH"]},
        "remote_for": lambda url: str(base) + url.removeprefix("https://github.com"),
    }
    return Git(workdir, **(defaults | options))  # type: ignore[arg-type]  keyword options of one class
