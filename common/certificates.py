"""Whose certificates git trusts: the same as the rest of the process, unless git is told otherwise.

Python heeds SSL_CERT_FILE by itself. Git does so only where its TLS library happens to; so it is told in its own words.
"""

from collections.abc import Mapping
from typing import Final

_OWN: Final = ("GIT_SSL_CAINFO", "GIT_SSL_CAPATH")
"""Git's own variables: a file of certificates, a folder of them."""


def for_git(environ: Mapping[str, str]) -> dict[str, str]:
    """What git's environment has to have beside the rest.

    :param environ: the process's environment.
    """
    found = {name: environ[name] for name in _OWN if environ.get(name)}
    if not found and (file := environ.get("SSL_CERT_FILE")):
        found["GIT_SSL_CAINFO"] = file
    return found
