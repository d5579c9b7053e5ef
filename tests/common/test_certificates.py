"""Git trusts whom the process trusts."""

import pytest

from common import certificates


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {}),
        ({"SSL_CERT_FILE": ""}, {}),
        ({"SSL_CERT_FILE": "/all.pem"}, {"GIT_SSL_CAINFO": "/all.pem"}),
        ({"SSL_CERT_FILE": "/all.pem", "GIT_SSL_CAINFO": "/git.pem"}, {"GIT_SSL_CAINFO": "/git.pem"}),
        ({"SSL_CERT_FILE": "/all.pem", "GIT_SSL_CAPATH": "/git"}, {"GIT_SSL_CAPATH": "/git"}),
    ],
)
def test_git_is_told_in_its_own_words(environ: dict[str, str], expected: dict[str, str]) -> None:
    assert certificates.for_git(environ) == expected
