"""What the engine is told, flag by flag, and what is made of its answers: no engine."""

from pathlib import Path
from typing import Any

import attrs
import pytest

from agent.executors.base import ExecutorError, Limits, Run
from agent.executors.docker.exit import Circumstances, compose_exit, engine_restarted, has_ended, has_started, time_ns
from agent.executors.docker.follower import Demultiplexer
from agent.executors.docker.notes import Spool, Usage, add_sample
from agent.executors.docker.spec import (
    DockerSettings,
    check_allowed,
    container_body,
    container_name,
    database_host,
    read_settings,
    references,
)
from common.environ import ConfigurationError, Environ

SHA = "sha256:" + "a" * 64
URL = "mssql://user:pa55word@db.example.org:1433/opencorona"
RUN = Run(
    task_id="abc-001",
    job_id="abc",
    workspace="space",
    action="act",
    image="ghcr.io/opensafely-core/python:v2",
    image_sha=SHA,
    args=("python", "a.py"),
    env={"DATABASE_URL": URL, "HOME": "/tmp"},
    volume=Path("/srv/high/volumes/abc-001"),
    state_dir=Path("/srv/rap/abc-001"),
    limits=Limits(cpu_count=4, memory_bytes=1 << 30),
)
SETTINGS = DockerSettings(agent_id="agent-1", user="1000:1001")


def body(run: Run = RUN, settings: DockerSettings = SETTINGS, **options: Any) -> dict[str, Any]:
    return container_body(run, settings, "image", host_cpus=2, **options)


def test_section_5_5() -> None:
    made = body()
    assert container_name(RUN) == "os-job-abc-001"
    assert made["User"] == "1000:1001"
    assert made["Cmd"] == ["python", "a.py"]
    assert made["WorkingDir"] == "/workspace"
    host = made["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Init"] is True
    assert host["LogConfig"]["Type"] == "local"
    assert host["LogConfig"]["Config"] == {"max-size": "20m", "max-file": "200", "compress": "true"}
    assert host["NanoCpus"] == 2_000_000_000, "an engine refuses more CPUs than it has"
    assert host["Mounts"][0]["Source"] == "/srv/high/volumes/abc-001"
    assert host["NetworkMode"] == "none"
    assert "Dns" not in host
    assert "ExtraHosts" not in host


def test_a_filter_of_system_calls_is_told_beside_the_other_options() -> None:
    assert body(seccomp="{}")["HostConfig"]["SecurityOpt"] == ["no-new-privileges", "seccomp={}"]


def test_the_text_of_the_filter_is_not_recorded_with_every_job() -> None:
    state = {
        "Status": "exited",
        "ExitCode": 0,
        "StartedAt": "2026-03-01T10:00:00Z",
        "FinishedAt": "2026-03-01T10:00:01Z",
    }
    options = ["no-new-privileges", 'seccomp={"defaultAction":"SCMP_ACT_ERRNO"}']
    container = {"Id": "c" * 64, "State": state, "HostConfig": {"SecurityOpt": options, "Memory": 1}}
    told = compose_exit(container, Circumstances(), {}).metadata["HostConfig"]
    assert told == {"SecurityOpt": ["no-new-privileges", "seccomp=own"], "Memory": 1}
    assert len(options[1]) > 20, "what the engine said is left as it was"


def test_database_jobs_reach_one_network_and_resolve_one_name() -> None:
    run = attrs.evolve(RUN, network=True)
    assert database_host(run) == "db.example.org"
    host = body(run, extra_hosts={"db.example.org": "10.0.0.7"})["HostConfig"]
    assert host["NetworkMode"] == "jobrunner-db"
    assert host["Dns"] == ["192.0.2.0"]
    assert host["ExtraHosts"] == ["db.example.org:10.0.0.7"]


def test_where_data_are_dummies_database_jobs_have_the_engines_own_network() -> None:
    dummy = attrs.evolve(SETTINGS, dummy_data=True)
    host = body(attrs.evolve(RUN, network=True, env={}), settings=dummy)["HostConfig"]
    assert not {"NetworkMode", "Dns", "ExtraHosts"} & set(host)
    assert body(settings=dummy)["HostConfig"]["NetworkMode"] == "none"


def test_other_jobs_have_no_database_whatever_their_environment_says() -> None:
    assert database_host(RUN) is None


def test_unreadable_database_address_is_not_told() -> None:
    run = attrs.evolve(RUN, network=True, env={"DATABASE_URL": "mssql://user:pa55word@[broken/"})
    with pytest.raises(ExecutorError, match="DEFAULT_DATABASE_URL") as caught:
        database_host(run)
    assert "pa55word" not in repr(caught.value)


def test_secrets_are_in_the_environment_only() -> None:
    made = body(attrs.evolve(RUN, network=True))
    assert [key for key, value in made.items() if "pa55word" in repr(value)] == ["Env"]


def test_volumes_of_an_agent_in_a_container() -> None:
    made = body(settings=attrs.evolve(SETTINGS, host_volume_dir=Path("/mnt/volumes")))
    assert made["HostConfig"]["Mounts"][0]["Source"] == "/mnt/volumes/abc-001"


@pytest.mark.parametrize("podman", [False, True])
def test_a_limit_on_disk_bounds_each_file(podman: bool) -> None:
    limits = attrs.evolve(RUN.limits, disk_bytes=1 << 30)
    bound = {"Name": "fsize", "Soft": 1 << 30, "Hard": 1 << 30}
    assert bound in body(attrs.evolve(RUN, limits=limits), podman=podman)["HostConfig"]["Ulimits"]
    assert "fsize" not in str(body(podman=podman)["HostConfig"]["Ulimits"])


def test_podman_has_other_log_drivers() -> None:
    assert body(podman=True)["HostConfig"]["LogConfig"]["Type"] == "k8s-file"


@pytest.mark.parametrize(
    ("image", "sha", "proxy", "expected"),
    [
        ("ghcr.io/o/python:v2", None, "", ("ghcr.io/o/python:v2",)),
        ("ghcr.io/o/python:v2", SHA, "", (f"ghcr.io/o/python@{SHA}",)),
        ("ghcr.io/o/python:v2", SHA, "proxy:8080", (f"ghcr.io/o/python@{SHA}", f"proxy:8080/o/python@{SHA}")),
        ("localhost:5000/python:v2", SHA, "", (f"localhost:5000/python@{SHA}",)),
        ("python:v2", None, "proxy", ("python:v2", "proxy/python:v2")),
        ("o/python:v2", None, "proxy", ("o/python:v2", "proxy/o/python:v2")),
    ],
)
def test_references(image: str, sha: str | None, proxy: str, expected: tuple[str, ...]) -> None:
    run = attrs.evolve(RUN, image=image, image_sha=sha)
    assert references(run, attrs.evolve(SETTINGS, proxy=proxy)) == expected


@pytest.mark.parametrize("image", ["ghcr.io/opensafely-core/r:latest", "mine", "mine:v1", "ghcr.io/me/x"])
def test_allowed(image: str) -> None:
    check_allowed(image, attrs.evolve(SETTINGS, allowed_images=("mine", "ghcr.io/me/")))


@pytest.mark.parametrize(
    "image", ["mine/../../containers/json?x=", "mine/../x", "mine//x", "mine#x", "mine x", "mine\n", "mine%2e", "mïne"]
)
def test_names_that_would_lead_elsewhere_in_the_engines_api(image: str) -> None:
    with pytest.raises(ExecutorError, match="is not an image's name") as caught:
        check_allowed(image, attrs.evolve(SETTINGS, allowed_images=("mine",)))
    assert caught.value.fatal


@pytest.mark.parametrize(
    "image", ["", "evil", "mine2", "ghcr.io/opensafely-core-evil/r", "evil/ghcr.io/opensafely-core"]
)
def test_not_allowed(image: str) -> None:
    with pytest.raises(ExecutorError, match=f"'{image}' is not allowed") as caught:
        check_allowed(image, attrs.evolve(SETTINGS, allowed_images=("mine", "")))
    assert caught.value.fatal


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAP_DOCKER_HOST", "docker.sock"),
        ("DOCKER_HOST", "ssh://host"),
        ("DOCKER_USER_ID", "me"),
        ("DOCKER_HOST_VOLUME_DIR", "volumes"),
        ("DATABASE_ACCESS_NETWORK", "host"),
        ("DATABASE_ACCESS_NETWORK", "container:abc"),
        ("DOCKER_PROXY", "https://proxy"),
        ("IMAGE_PULL_TIMEOUT", "0"),
    ],
)
def test_faulty_settings_are_named(name: str, value: str) -> None:
    environ = Environ({name: value})
    read_settings(environ, "agent-1")
    with pytest.raises(ConfigurationError, match=f"^{name} "):
        environ.finish()


def test_rap_docker_host_comes_first() -> None:
    both = Environ({"DOCKER_HOST": "tcp://other:2375", "RAP_DOCKER_HOST": "unix:///run/podman.sock"})
    assert read_settings(both, "agent-1").host == "unix:///run/podman.sock"
    assert read_settings(Environ({"DOCKER_HOST": "tcp://other:2375/"}), "agent-1").host == "tcp://other:2375"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:01.000000001Z", 1_000_000_001),
        ("1970-01-01T01:00:01.5+01:00", 1_500_000_000),
        ("1970-01-01T00:00:02Z", 2_000_000_000),
        ("0001-01-01T00:00:00Z", 0),
        ("", 0),
        (None, 0),
    ],
)
def test_times(text: str | None, expected: int) -> None:
    assert time_ns(text) == expected


def container(code: int = 0, **state: Any) -> dict[str, Any]:
    times = {"StartedAt": "2026-01-01T00:00:00Z", "FinishedAt": "2026-01-01T00:00:05Z"}
    return {"Id": "c1", "Image": "i1", "State": {"Status": "exited", "ExitCode": code, **times, **state}, "Config": {}}


def test_container_that_was_only_created_has_not_ended() -> None:
    made = container(StartedAt="0001-01-01T00:00:00Z", Status="created")
    assert not has_started(made)
    assert not has_ended(made)


def test_mark_of_a_kill_that_came_too_late_says_nothing() -> None:
    exit = compose_exit(container(3), Circumstances(terminated=True, timed_out=True), {})
    assert (exit.code, exit.terminated, exit.timed_out) == (3, False, False)


@pytest.mark.parametrize("field", ["outage", "rebooted", "restarted"])
@pytest.mark.parametrize(("code", "lost"), [(137, True), (143, True), (255, True), (0, False), (1, False)])
def test_engines_end_is_a_loss_only_where_it_ended_the_run(field: str, code: int, lost: bool) -> None:
    assert bool(compose_exit(container(code), Circumstances(**{field: True}), {}).lost) is lost


def test_out_of_memory_is_no_loss() -> None:
    exit = compose_exit(container(137, OOMKilled=True), Circumstances(outage=True), {})
    assert exit.oom_killed
    assert exit.lost is None


def test_engine_that_forgot_a_start_was_restarted() -> None:
    start = {"Action": "start", "id": "c1"}
    other = {"Action": "start", "id": "c2"}
    assert not engine_restarted("c1", [other, start])
    assert engine_restarted("c1", [other])
    assert not engine_restarted("c1", [other] * 256), "it may just have been pushed out"


def test_usage() -> None:
    second = 1_000_000_000
    stats = {
        "cpu_stats": {"cpu_usage": {"total_usage": second}},
        "memory_stats": {"usage": 30 << 20, "stats": {"total_inactive_file": 10 << 20}},
    }
    usage = add_sample(Usage(), stats, started_ns=0, now_ns=2 * second)
    assert usage.metrics() == {"cpu_mean": 50.0, "cpu_peak": 50.0, "mem_mb_mean": 20.0, "mem_mb_peak": 20.0}
    stats = {
        "cpu_stats": {"cpu_usage": {"total_usage": 3 * second}},
        "memory_stats": {"usage": 40 << 20, "stats": {"inactive_file": 0}},
    }
    usage = add_sample(usage, stats, started_ns=0, now_ns=4 * second)
    assert usage.metrics() == {"cpu_mean": 75.0, "cpu_peak": 100.0, "mem_mb_mean": 30.0, "mem_mb_peak": 40.0}
    assert add_sample(usage, {"cpu_stats": {}}, started_ns=0, now_ns=5 * second) is usage


def test_frames_in_pieces() -> None:
    whole = b"\x01\0\0\0\0\0\0\x03out" + b"\x02\0\0\0\0\0\0\x03err" + b"\x01\0\0\0\0\0\0\0"
    demultiplexer = Demultiplexer()
    found = [frame for byte in whole for frame in demultiplexer.feed(bytes([byte]))]
    assert found == [(1, b"out"), (2, b"err"), (1, b"")]


def test_output_told_again_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    first, again = Spool(path, None), Spool(path, None)
    first.write([b"0123", b"45"])
    again.write([b"012"])
    again.write([b"34567"])
    first.write([b"6789"])
    assert path.read_bytes() == b"0123456789"


def test_output_beyond_the_limit_is_dropped(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "log", 5)
    spool.write([b"0123"])
    assert not spool.full
    spool.write([b"4567"])
    assert spool.full
    assert (tmp_path / "log").read_bytes() == b"01234"
