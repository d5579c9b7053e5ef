"""Both programs' settings: what each variable becomes, and what is refused."""

from pathlib import Path

import pytest

from agent import settings as agent
from common.environ import ConfigurationError
from common.protocol import OPEN, Egress, Named
from controller import settings as controller
from controller.core.resources import JobLimits

CONTROLLER = {"RAP_DATABASE_URL": "postgresql://rap:hunter2-hunter2@db/rap"}
AGENT = {
    "BACKEND": "test",
    "RAP_CONTROLLER_URL": "https://controller.example.org/",
    "CONTROLLER_TASK_API_TOKEN": "secret-of-agents",
}


def refused(read, values: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        read(values)
    return caught.value.faults


def test_defaults_of_the_controller_are_those_of_the_reference():
    settings = controller.from_environ(CONTROLLER)
    assert (settings.listen_host, settings.listen_port) == ("0.0.0.0", 8000)
    assert [each.slug for each in settings.backends] == ["test", "tpp", "emis", "ted"]
    assert [each.max_workers for each in settings.backends] == [2, 10, 10, 10]
    assert [each.max_db_workers for each in settings.backends] == [2, 10, 10, 10]
    assert {each.job_limits for each in settings.backends} == {JobLimits(cpu_count=2, memory_limit="4G")}
    assert (settings.level4_max_csv_rows, settings.level4_max_filesize) == (5000, 16777216)
    assert ".svgz" in settings.level4_file_types
    assert settings.allowed_orgs == ("opensafely", "opensafely-actions")
    assert settings.workdir == Path.cwd() / "workdir"
    assert not settings.allow_local_git_repos


def test_without_tokens_nobody_gets_in():
    for backend in controller.from_environ(CONTROLLER).backends:
        assert backend.client_tokens == ()
        assert backend.operator_tokens == ()
        assert backend.agent_token is None


def test_a_backends_own_numbers_go_before_the_common_ones():
    settings = controller.from_environ(
        CONTROLLER
        | {
            "BACKENDS": "a,b-c",
            "DEFAULT_JOB_CPU_COUNT": "1.5",
            "DEFAULT_JOB_MEMORY_LIMIT": "2g",
            "A_MAX_WORKERS": "7",
            "B_C_JOB_CPU_COUNT": "8",
            "B_C_JOB_MEMORY_LIMIT": "512m",
            "B_C_MAX_DB_WORKERS": "0",
        }
    )
    first, second = settings.backends
    assert (first.max_workers, first.max_db_workers) == (7, 7)
    assert first.job_limits == JobLimits(cpu_count=1.5, memory_limit="2g")
    assert (second.max_workers, second.max_db_workers) == (10, 0)
    assert second.job_limits == JobLimits(cpu_count=8, memory_limit="512m")


def test_limits_and_ceilings_of_single_jobs():
    settings = controller.from_environ(
        CONTROLLER
        | {
            "BACKENDS": "a,b,c",
            "DEFAULT_JOB_TIME_LIMIT": "2h",
            "A_JOB_MAX_MEMORY_LIMIT": "64G",
            "A_JOB_MAX_TIME_LIMIT": "0",
            "B_JOB_TIME_LIMIT": "0",
            "C_JOB_TIME_LIMIT": "90",
            "C_JOB_MAX_CPU_COUNT": "2.5",
            "RAP_JOB_RESOURCES": "true",
        }
    )
    first, second, third = settings.backends
    assert settings.job_resources
    assert not controller.from_environ(CONTROLLER).job_resources
    assert [each.job_limits.time_limit for each in settings.backends] == [7200, None, 90]
    assert first.job_most == JobLimits(cpu_count=2, memory_limit="64G")
    assert second.job_most == second.job_limits
    assert third.job_most == JobLimits(cpu_count=2.5, memory_limit="4G", time_limit=90)


def test_client_tokens_are_split_and_not_trimmed():
    settings = controller.from_environ(CONTROLLER | {"BACKENDS": "test", "TEST_CLIENT_TOKENS": "a, b,,c"})
    assert settings.backends[0].client_tokens == ("a", " b", "c")


def test_operator_tokens_are_written_as_client_tokens_are():
    settings = controller.from_environ(CONTROLLER | {"BACKENDS": "a-b", "A_B_OPERATOR_TOKENS": "a, b,,c"})
    assert settings.backends[0].operator_tokens == ("a", " b", "c")


def test_a_token_may_manage_one_backend_and_merely_use_another():
    values = {"BACKENDS": "a,b-c", "A_OPERATOR_TOKENS": "s3cret", "B_C_CLIENT_TOKENS": "s3cret,other"}
    first, second = controller.from_environ(CONTROLLER | values).backends
    assert (first.operator_tokens, second.operator_tokens) == (("s3cret",), ())
    assert (first.client_tokens, second.client_tokens) == ((), ("s3cret", "other"))


def test_the_agents_default_token_of_upstream_must_be_asked_for():
    values = CONTROLLER | {"BACKENDS": "test", "TEST_JOB_SERVER_TOKEN": "token"}
    (fault,) = refused(controller.from_environ, values)
    assert fault.startswith("TEST_JOB_SERVER_TOKEN has a value that everybody knows")
    allowed = controller.from_environ(values | {"RAP_ALLOW_DEFAULT_TOKEN": "true"})
    assert allowed.backends[0].agent_token == "token"
    unset = controller.from_environ(CONTROLLER | {"BACKENDS": "test", "RAP_ALLOW_DEFAULT_TOKEN": "true"})
    assert unset.backends[0].agent_token == "token"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAP_DATABASE_URL", ""),
        ("RAP_DATABASE_URL", "sqlite:///x"),
        ("RAP_LISTEN", "8000"),
        ("RAP_LISTEN", "host:"),
        ("RAP_LISTEN", "host:99999"),
        ("RAP_LISTEN", ":80"),
        ("BACKENDS", ","),
        ("BACKENDS", "Test"),
        ("BACKENDS", "a-b,a_b"),
        ("BACKENDS", "../x"),
        ("TEST_CLIENT_TOKENS", "a\nb"),
        ("TEST_OPERATOR_TOKENS", "a\nb"),
        ("TEST_JOB_SERVER_TOKEN", "héllo"),
        ("TEST_MAX_WORKERS", "-1"),
        ("TEST_JOB_CPU_COUNT", "0"),
        ("TEST_JOB_MEMORY_LIMIT", "much"),
        ("DEFAULT_JOB_MEMORY_LIMIT", "0G"),
        ("DEFAULT_JOB_TIME_LIMIT", "soon"),
        ("TEST_JOB_TIME_LIMIT", "-1"),
        ("TEST_JOB_TIME_LIMIT", "0.5"),
        ("TEST_JOB_TIME_LIMIT", "inf"),
        ("TEST_JOB_MAX_CPU_COUNT", "1"),
        ("TEST_JOB_MAX_MEMORY_LIMIT", "1G"),
        ("TEST_JOB_MAX_MEMORY_LIMIT", "lots"),
        ("TEST_JOB_MAX_TIME_LIMIT", "1h"),
        ("RAP_JOB_RESOURCES", "maybe"),
        ("WORKSPACE_EHRQL_MAX_JOIN_COUNT", "{"),
        ("WORKSPACE_EHRQL_MAX_JOIN_COUNT", '{"a": "b"}'),
        ("WORKSPACE_EHRQL_MAX_JOIN_COUNT", "[1]"),
        ("RAP_IMAGE_DIGESTS", "maybe"),
        ("RAP_LEASE_SECONDS", "0"),
        ("RAP_POOL_SIZE", "1"),
        ("RAP_MAX_BODY", "1"),
        ("LOGLEVEL", "loud"),
        ("RAP_LOG_FORMAT", "xml"),
        ("LEVEL4_MAX_CSV_ROWS", "1.5"),
    ],
)
def test_what_the_controller_refuses(name: str, value: str):
    (fault,) = refused(controller.from_environ, CONTROLLER | {name: value})
    assert fault.split()[0] == name


def test_addresses_to_listen_at():
    def listen(raw: str) -> tuple[str, int]:
        settings = controller.from_environ(CONTROLLER | {"RAP_LISTEN": raw})
        return settings.listen_host, settings.listen_port

    assert listen("127.0.0.1:0") == ("127.0.0.1", 0)
    assert listen("[::1]:8080") == ("::1", 8080)


def test_all_faults_of_a_controller_come_together():
    told = refused(
        controller.from_environ,
        {"BACKENDS": "test", "TEST_MAX_WORKERS": "x", "RAP_LISTEN": "y", "RAP_POOL_SIZE": "z"},
    )
    assert {fault.split()[0] for fault in told} == {
        "RAP_DATABASE_URL",
        "TEST_MAX_WORKERS",
        "RAP_LISTEN",
        "RAP_POOL_SIZE",
    }


def test_no_secret_of_the_controller_is_in_its_repr_and_all_are_listed():
    secrets = {"hunter2-hunter2", "client-secret", "operator-secret", "agent-secret", "git-secret", "stata-secret"}
    settings = controller.from_environ(
        CONTROLLER
        | {
            "BACKENDS": "test",
            "TEST_CLIENT_TOKENS": "client-secret",
            "TEST_OPERATOR_TOKENS": "operator-secret",
            "TEST_JOB_SERVER_TOKEN": "agent-secret",
            "PRIVATE_REPO_ACCESS_TOKEN": "git-secret",
            "STATA_LICENSE": "stata-secret",
        }
    )
    assert not [secret for secret in secrets if secret in repr(settings)]
    assert set(settings.secrets) == secrets


def test_the_database_alone():
    assert controller.database_url(CONTROLLER | {"RAP_POOL_SIZE": "x"}) == CONTROLLER["RAP_DATABASE_URL"]
    assert len(refused(controller.database_url, {})) == 1


def test_defaults_of_the_agent():
    settings = agent.from_environ(AGENT)
    assert settings.controller_url == "https://controller.example.org"
    assert settings.executor == "sandbox"
    assert settings.slots >= 2
    assert settings.egress == Egress() == Egress(metrics=False, logs=False, outputs=Named.NONE, reviewed=False)
    assert settings.job_time_limit is None
    assert settings.job_disk_limit is None
    assert settings.disk_reserve == 1 << 30
    assert settings.exit_mode == agent.LEAVE
    assert not settings.allow_unisolated
    assert not settings.sandbox_network
    assert settings.high_privacy_dir == Path.cwd() / "workdir" / "high_privacy"
    assert settings.archive_dir == settings.high_privacy_dir / "archives"
    assert settings.db_env == {}
    assert settings.agent_id


@pytest.mark.parametrize(
    ("raw", "size"), [("0", 0), ("10G", 10 << 30), ("512m", 512 << 20), ("1.5g", 3 << 29), ("4096", 4096)]
)
def test_sizes_on_disk(raw: str, size: int):
    settings = agent.from_environ(AGENT | {"RAP_JOB_DISK_LIMIT": raw, "RAP_DISK_RESERVE": raw})
    assert settings.job_disk_limit == (size or None)
    assert settings.disk_reserve == size


def test_the_upstream_name_of_the_address_serves_too():
    values = {name: value for name, value in AGENT.items() if name != "RAP_CONTROLLER_URL"}
    settings = agent.from_environ(values | {"CONTROLLER_TASK_API_ENDPOINT": "http://c:3000/"})
    assert settings.controller_url == "http://c:3000"
    assert refused(agent.from_environ, values)[0].startswith("RAP_CONTROLLER_URL must be set")
    (fault,) = refused(agent.from_environ, values | {"CONTROLLER_TASK_API_ENDPOINT": "c:3000"})
    assert fault.startswith("CONTROLLER_TASK_API_ENDPOINT has")


@pytest.mark.parametrize(
    ("raw", "egress"),
    [
        ("status", Egress()),
        ("+metrics", Egress(metrics=True)),
        ("status,+metrics", Egress(metrics=True)),
        ("+logs", Egress(logs=True)),
        ("+outputs:minimally_sensitive", Egress(outputs=Named.MINIMALLY_SENSITIVE)),
        ("+outputs:moderately_sensitive,status", Egress(outputs=Named.MODERATELY_SENSITIVE)),
        ("+outputs:moderately_sensitive:reviewed", Egress(outputs=Named.MODERATELY_SENSITIVE, reviewed=True)),
        (
            "+outputs:minimally_sensitive:reviewed , +logs, +metrics",
            Egress(metrics=True, logs=True, outputs=Named.MINIMALLY_SENSITIVE, reviewed=True),
        ),
        ("open", OPEN),
    ],
)
def test_egress(raw: str, egress: Egress):
    assert agent.from_environ(AGENT | {"RAP_EGRESS": raw}).egress == egress
    assert agent.from_environ(AGENT | {"RAP_EGRESS": egress.words}).egress == egress


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("+outputs", "must say which outputs: +outputs:minimally_sensitive or +outputs:moderately_sensitive"),
        ("+outputs:", "must say which outputs"),
        ("+outputs:highly_sensitive", "names a level that never leaves"),
        ("+outputs:highly_sensitive:reviewed", "names a level that never leaves"),
        ("+outputs:all", "must say which outputs"),
        ("+outputs:moderately_sensitive:", "must say which outputs"),
        ("+outputs:moderately_sensitive:seen", "must say which outputs"),
        ("+outputs:moderately_sensitive,+outputs:minimally_sensitive", "has more than one +outputs"),
        ("open,status", "nor is it open"),
        ("metrics", "is not made of"),
        ("outputs:moderately_sensitive", "is not made of"),
    ],
)
def test_an_egress_policy_that_is_none_is_refused_with_what_to_write(raw: str, why: str):
    (fault,) = refused(agent.from_environ, AGENT | {"RAP_EGRESS": raw})
    assert fault.startswith("RAP_EGRESS ")
    assert why in fault


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BACKEND", ""),
        ("BACKEND", "a/b"),
        ("RAP_CONTROLLER_URL", "ftp://x"),
        ("RAP_CONTROLLER_URL", "http://"),
        ("RAP_CONTROLLER_URL", "http://user:password@host"),
        ("RAP_CONTROLLER_URL", "http://host:port"),
        ("RAP_CONTROLLER_URL", "http://host/?a=b"),
        ("CONTROLLER_TASK_API_TOKEN", ""),
        ("CONTROLLER_TASK_API_TOKEN", "a\r\nb"),
        ("RAP_AGENT_ID", "a b"),
        ("RAP_EXECUTOR", "kubernetes"),
        ("RAP_AGENT_SLOTS", "0"),
        ("RAP_EGRESS", "everything"),
        ("RAP_EGRESS", ","),
        ("RAP_JOB_TIME_LIMIT", "-1"),
        ("RAP_JOB_DISK_LIMIT", "much"),
        ("RAP_JOB_DISK_LIMIT", "-1G"),
        ("RAP_DISK_RESERVE", "10%"),
        ("RAP_JOB_TIME_LIMIT", "soon"),
        ("STATS_POLL_INTERVAL", "0"),
        ("RAP_AGENT_EXIT", "stay"),
        ("RAP_ALLOW_UNISOLATED", "perhaps"),
    ],
)
def test_what_the_agent_refuses(name: str, value: str):
    (fault,) = refused(agent.from_environ, AGENT | {name: value})
    assert fault.split()[0] == name
    assert "password" not in fault


def test_secrets_of_database_jobs():
    values = AGENT | {
        "DEFAULT_DATABASE_URL": "mssql://u:p-a-s-s@h/d",
        "TEMP_DATABASE_NAME": "temp",
        "PRESTO_TLS_CERT": "certificate",
        "PRESTO_TLS_KEY": "private-key",
        "EMIS_ORGANISATION_HASH": "hash-of-it",
    }
    settings = agent.from_environ(values)
    assert settings.db_env == {
        "DATABASE_URL": "mssql://u:p-a-s-s@h/d",
        "TEMP_DATABASE_NAME": "temp",
        "PRESTO_TLS_CERT": "certificate",
        "PRESTO_TLS_KEY": "private-key",
        "EMIS_ORGANISATION_HASH": "hash-of-it",
    }
    assert "p-a-s-s" not in repr(settings)
    assert "secret-of-agents" not in repr(settings)
    assert {"secret-of-agents", "p-a-s-s", *settings.db_env.values()} == set(settings.secrets)
    dummies = agent.from_environ(values | {"USING_DUMMY_DATA_BACKEND": "true"})
    assert (dummies.db_env, dummies.docker.dummy_data) == ({}, True)


@pytest.mark.parametrize(
    ("url", "passwords"),
    [
        ("mssql://u:p%40ss%20word@h/d", {"p%40ss%20word", "p@ss word"}),
        ("mssql://u:a@h/d", set()),
        ("mssql://h/d", set()),
        ("mssql://u:password@[h/d", set()),
    ],
)
def test_a_databases_password_is_a_secret_by_itself(url: str, passwords: set[str]):
    settings = agent.from_environ(AGENT | {"DEFAULT_DATABASE_URL": url})
    assert set(settings.secrets) == {"secret-of-agents", url, *passwords}


@pytest.mark.parametrize("given", ["PRESTO_TLS_CERT", "PRESTO_TLS_KEY"])
def test_half_a_certificate_is_none(given: str):
    (fault,) = refused(agent.from_environ, AGENT | {given: "x"})
    missing = {"PRESTO_TLS_CERT": "PRESTO_TLS_KEY", "PRESTO_TLS_KEY": "PRESTO_TLS_CERT"}[given]
    assert fault == f"{missing} must be set too, since {given} is"


def test_all_faults_of_an_agent_come_together():
    faults = refused(agent.from_environ, {"RAP_EGRESS": "all", "RAP_SANDBOX_IMAGES": "python"})
    named = [fault.split()[0] for fault in faults]
    missing = {"BACKEND", "RAP_CONTROLLER_URL", "CONTROLLER_TASK_API_TOKEN"}
    assert set(named) == missing | {"RAP_EGRESS", "RAP_SANDBOX_IMAGES"}
    assert len(named) == 5
