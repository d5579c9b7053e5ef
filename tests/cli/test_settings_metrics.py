"""Where metrics are served: never, without a token, where others reach it."""

import pytest

from common.environ import ConfigurationError
from controller.settings import Settings, from_environ

TOKEN = "sixteen-letters!"


def read(**values: str) -> Settings:
    return from_environ({"RAP_DATABASE_URL": "postgresql://h/d", "BACKENDS": "test", **values})


@pytest.mark.parametrize("listen", ["127.0.0.1:9100", "[::1]:9100", "localhost:9100", "127.3.2.1:0"])
def test_this_machine_alone_needs_no_token(listen: str) -> None:
    assert read(RAP_METRICS_LISTEN=listen).metrics_listen is not None


@pytest.mark.parametrize("listen", ["0.0.0.0:9100", "[::]:9100", "10.0.0.7:9100", "metrics.internal:9100"])
def test_every_other_address_does(listen: str) -> None:
    with pytest.raises(ConfigurationError, match=r"RAP_METRICS_LISTEN.*RAP_METRICS_TOKEN"):
        read(RAP_METRICS_LISTEN=listen)
    assert read(RAP_METRICS_LISTEN=listen, RAP_METRICS_TOKEN=TOKEN).metrics_listen is not None


@pytest.mark.parametrize("token", ["short", " " + TOKEN, TOKEN + "é"])
def test_a_token_that_is_none_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ConfigurationError, match="RAP_METRICS_TOKEN") as caught:
        read(RAP_METRICS_TOKEN=token)
    assert token not in str(caught.value)


def test_by_default_there_is_neither() -> None:
    settings = read()
    assert (settings.metrics_listen, settings.metrics_token) == (None, None)


def test_the_token_is_a_secret() -> None:
    settings = read(RAP_METRICS_TOKEN=TOKEN)
    assert TOKEN in settings.secrets
    assert TOKEN not in repr(settings)
