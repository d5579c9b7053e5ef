"""Errors of the domain: whose fault, a stable key, named fields, and a sentence for the reader.

No HTTP status here: each dialect's `errors.py` maps these classes to its own. Bugs stay bare exceptions.
"Nothing to do" is a return value, not an error.
"""

from typing import ClassVar


class DomainError(Exception):
    """Base of everything the engine raises on purpose.

    `key` is stable and machine-readable; `fields` name what it is about; `str()` is the sentence for a user.
    """

    key: ClassVar[str] = "error"

    def __init__(self, message: str, /, **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields


class Rejected(DomainError):
    """The caller asked for something that cannot be: fixing the request is the only way forward."""

    key = "rejected"


class InvalidProject(Rejected):
    """The project file breaks a rule (reference section 4.3)."""

    key = "invalid_project"


class SourceError(Rejected):
    """The repository, branch, commit or reusable action is not usable (reference sections 4.2, 4.7)."""

    key = "source"


class BackendNotAllowed(Rejected):
    """The backend is unknown, or not among the caller's. The two look the same from outside."""

    key = "backend_not_allowed"


class Conflict(DomainError):
    """The same id was used before for something else."""

    key = "conflict"


class NotFound(DomainError):
    """No such thing, or not visible to the caller."""

    key = "not_found"


class Forbidden(DomainError):
    """The caller may know of it, but may not do this with it."""

    key = "forbidden"


class Unavailable(DomainError):
    """Ours to mend: try the same request again later."""

    key = "unavailable"

    def __init__(self, message: str, /, *, retry_after: float = 5, **fields: object) -> None:
        super().__init__(message, **fields)
        self.retry_after = retry_after
