"""What can go wrong with one job, sorted by whose fault it is, and how each is told outside the backend.

An error has two texts. `str(error)` is for people inside the backend: it may name files, commits and paths.
`public` is fixed wording that may leave under any egress policy.
"""

from typing import ClassVar


class JobError(Exception):
    """A job cannot go on.

    `fatal` is True if another attempt cannot help: the researcher has to change something.
    """

    fatal: bool = True
    public: ClassVar[str] = "The agent could not run this job; the details are in the backend's agent log."


class BadDefinition(JobError):
    """The task's definition lacks something or has a value that makes no sense."""

    public = "The task's definition is not usable; the details are in the backend's agent log."


class Unsupported(JobError):
    """The task asks for something that this agent's executor cannot do."""

    public = "This agent cannot run tasks of this type."


class MissingInput(JobError):
    """An output that an earlier job promised is no longer in the workspace."""

    public = "A file that this job needs as input is missing from the workspace; run the action it comes from again."


class ArchivedWorkspace(JobError):
    """The workspace was archived; its files are not at hand."""

    public = "The workspace has been archived; ask for it to be restored before running jobs in it."


class BadSource(JobError):
    """The repository or the commit is not there, or not allowed here."""

    public = "The repository or the commit of this job could not be used on this backend."


class SourceUnavailable(JobError):
    """The repository could not be reached now."""

    fatal = False
    public = "The repository of this job could not be read; the attempt may be repeated."


class UnsafePath(JobError):
    """A symlink leads where the job may not read or write."""

    public = "The job uses a link that leaves its own files; the details are in the backend's agent log."


class OutputClash(JobError):
    """An output cannot be stored because a folder has its name, or a file has its folder's."""

    public = "An output of this job has the name of a folder of the workspace, or the reverse."


class DiskFull(JobError):
    """No space is left on one of the agent's file systems."""

    fatal = False
    public = "The backend's disk is full; the attempt may be repeated once there is space."


class RunLost(JobError):
    """The job's process was started and is gone, or never came to life, for a reason that is not the job's."""

    fatal = False
    public = "The job's process was lost: the backend's machine restarted, or its sandbox failed."


class Superseded(JobError):
    """A newer attempt of the job has begun on this backend's storage: this one has nothing to say there any more."""

    fatal = False
    public = "A newer attempt of this job has begun."


class MachineTrouble(JobError):
    """The agent's machine or the agent itself failed, for a reason that is not the job's."""

    fatal = False
    public = "The agent had an internal problem with this job; the attempt may be repeated."


class ExecutorFailed(JobError):
    """The executor could not do what it was asked.

    :param fatal: whether trying again cannot help.
    """

    public = "The executor could not run this job; the details are in the backend's agent log."

    def __init__(self, message: str, *, fatal: bool) -> None:
        super().__init__(message)
        self.fatal = fatal
