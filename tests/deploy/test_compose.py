"""compose.yaml and the files it mounts: every reference resolves, and what one says of another is so."""

import importlib.resources
import json
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

from observatory import Settings
from observatory.service.server import FINISH_FOR
from observatory.units import seconds
from tests.servers import ROOT, command, environment

FILE = ROOT / "compose.yaml"
DEPLOY = ROOT / "deploy"
INSTANCES = {"service-1", "service-2", "service-3"}
OURS = INSTANCES | {"worker"}
PORT = 8484
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def interpolated(text: str) -> str:
    """As Compose would read it where no variable is set."""
    return _VARIABLE.sub(lambda found: found[2] or "", text)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(interpolated(FILE.read_text()))
    return loaded


@pytest.fixture
def services(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["services"]
    return found


def mounts(service: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Source, target and mode of each."""
    for line in service.get("volumes", []):
        source, target, *mode = line.split(":")
        yield source, target, mode[0] if mode else "rw"


def settings_of(service: dict[str, Any]) -> Settings:
    """What a process in this container would read, its file being the one that is mounted there."""
    given = dict(service["environment"])
    files = {target: source for source, target, _ in mounts(service)}
    given["OBSERVATORY_CONFIG"] = str(ROOT / files[given["OBSERVATORY_CONFIG"]])
    return Settings.load(environ=given)


def test_it_is_a_compose_file_by_the_schema(document: dict[str, Any]) -> None:
    """The Compose specification's own schema, as check-jsonschema ships it."""
    schema = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(document, json.loads(schema.read_text()))


def test_every_reference_resolves(document: dict[str, Any], services: dict[str, Any]) -> None:
    """Volumes, networks and services that are named exist, and those that exist are used."""
    assert {key for key in document if not key.startswith("x-")} == {"name", "services", "networks", "volumes"}
    volumes: set[str] = set()
    networks: set[str] = set()
    for name, service in services.items():
        assert ("image" in service) != ("build" in service), name
        volumes |= {source for source, _, _ in mounts(service) if not source.startswith(".")}
        networks |= set(service["networks"])
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services, f"{name} needs {needed}"
            # What is not started by default would never come up for what is.
            assert "profiles" not in services[needed]
            assert how["condition"] in {"service_started", "service_healthy"}
            assert how["condition"] == "service_started" or "healthcheck" in services[needed], f"{needed} cannot be healthy"
    assert volumes == set(document["volumes"])
    assert networks == set(document["networks"])


def test_every_mounted_file_is_in_the_repository(services: dict[str, Any]) -> None:
    """Docker would make an empty directory of one that is not. Containers cannot write to them."""
    found = {source: mode for service in services.values() for source, _, mode in mounts(service) if source.startswith(".")}
    assert all((ROOT / source).is_file() for source in found), found
    assert set(found.values()) == {"ro"}
    assert {Path(source).name for source in found} == {path.name for path in DEPLOY.iterdir()} - {"Dockerfile"}


def test_the_store_forgets_nothing(services: dict[str, Any]) -> None:
    """It persists to a named volume, and refuses instead of evicting."""
    store = services["valkey"]
    options = store["command"]
    assert options[options.index("--maxmemory-policy") + 1] == "noeviction"
    assert options[options.index("--appendonly") + 1] == "yes"
    assert ("valkey", "/data", "rw") in mounts(store)
    assert all(isinstance(word, str) for word in options), "YAML reads a bare yes as true"


def test_three_instances_that_the_front_knows_by_name(services: dict[str, Any]) -> None:
    """haproxy.cfg's addresses are the three services that serve, on the port they listen on."""
    serving = {name for name, service in services.items() if "serve" in service.get("command", [])}
    assert serving == INSTANCES
    known = re.findall(r"^ *presetenv SERVICE_\d (\S+)$", (DEPLOY / "haproxy.cfg").read_text(), re.MULTILINE)
    assert sorted(known) == sorted(f"{name}:{PORT}" for name in INSTANCES)
    for name in INSTANCES:
        assert services[name]["command"] == ["serve", "--host", "0.0.0.0", "--allow-anonymous"]
        assert settings_of(services[name]).serve.port == PORT
        assert services[name] == services["service-1"]
    assert services["worker"]["command"] == ["worker"]
    assert services["worker"]["deploy"]["replicas"] == 2
    assert set(services["haproxy"]["depends_on"]) == INSTANCES


def test_only_the_front_can_be_reached(services: dict[str, Any]) -> None:
    """One published port, on this machine's own address unless somebody says otherwise, and no way from there to the store."""
    assert {name: service["ports"] for name, service in services.items() if "ports" in service} == {
        "haproxy": [f"127.0.0.1:{PORT}:{PORT}"]
    }
    assert not set(services["haproxy"]["networks"]) & set(services["valkey"]["networks"])
    assert not any({"network_mode", "privileged", "cap_add"} & set(service) for service in services.values())


def test_what_is_optional_is_in_a_profile(services: dict[str, Any]) -> None:
    """Prometheus and the collector start only when they are asked for."""
    assert {name: service["profiles"] for name, service in services.items() if "profiles" in service} == {
        "prometheus": ["prometheus"],
        "otel-collector": ["otel"],
    }


def test_every_setting_in_the_environment_exists(services: dict[str, Any]) -> None:
    """No name is misspelt, and the processes agree on where the store is."""
    for name in OURS:
        settings = settings_of(services[name])
        assert settings.warnings == ()
        assert settings.environment == "production"
        assert settings.namespace == "prod"
        where = urlsplit(settings.redis.url or "")
        assert (where.scheme, where.hostname, where.port) == ("redis", "valkey", 6379)
        assert where.hostname in services
        assert services[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == ""
        assert services[name]["environment"] == services["worker"]["environment"]


def test_nothing_has_to_be_set_and_nothing_is_secret(services: dict[str, Any]) -> None:
    """Every variable has a default, and no environment carries a credential."""
    text = FILE.read_text()
    assert {found[1] for found in _VARIABLE.finditer(text)} == {"OTEL_EXPORTER_OTLP_ENDPOINT", "PUBLISH_ADDRESS"}
    assert all(":-" in found[0] for found in _VARIABLE.finditer(text))
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            assert not re.search(r"PASSWORD|SECRET|TOKEN|KEY|HEADERS", name)
            assert "@" not in value


def test_a_stopping_container_has_the_time_it_needs(services: dict[str, Any]) -> None:
    """Docker kills only what has overrun its own bounds."""
    for name in INSTANCES:
        settings = settings_of(services[name])
        needed = settings.serve.drain_for + FINISH_FOR + settings.shutdown_timeout
        assert seconds(services[name]["stop_grace_period"]) > needed
    settings = settings_of(services["worker"])
    assert seconds(services["worker"]["stop_grace_period"]) > settings.worker.drain_timeout + settings.shutdown_timeout
    front = re.search(r"^ *hard-stop-after (\w+)$", (DEPLOY / "haproxy.cfg").read_text(), re.MULTILINE)
    assert front is not None
    assert seconds(services["haproxy"]["stop_grace_period"]) > seconds(front[1])


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A port where readyz says this."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_is_what_readyz_says(services: dict[str, Any], status: int, code: int) -> None:
    """The very words of the file, but for the port; and no proxy of the environment is asked."""
    how, python, *words = services["service-1"]["healthcheck"]["test"]
    assert (how, python, words[0]) == ("CMD", "python", "-c")
    assert "/readyz" in words[1]
    assert str(PORT) in words[1]
    with answering(status) as port:
        done = subprocess.run(
            [sys.executable, *(word.replace(str(PORT), str(port)) for word in words)],
            env=environment(http_proxy="http://127.0.0.1:1", HTTP_PROXY="http://127.0.0.1:1"),
            check=False,
            timeout=60,
        )
    assert done.returncode == code


def test_the_settings_file_is_accepted() -> None:
    """By the loader, without a warning, and by the command that a pipeline would run."""
    settings = Settings.load(str(DEPLOY / "observatory.toml"), environ={})
    assert settings.environment == "production"
    assert settings.warnings == ()
    assert set(settings.limits) == {"api", "provider-tokens", "team-budget"}
    done = command("config", "check", str(DEPLOY / "observatory.toml"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok: ")


def test_prometheus_scrapes_the_fleet_as_one_target(services: dict[str, Any]) -> None:
    """Each instance gives the totals of all: three targets would count everything three times."""
    document = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    (job,) = document["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert job["static_configs"] == [{"targets": [f"haproxy:{PORT}"]}]
    assert set(services["prometheus"]["networks"]) & set(services["haproxy"]["networks"])


def test_the_collector_takes_in_what_the_services_send(services: dict[str, Any]) -> None:
    """OTLP over gRPC and HTTP; every part of a pipeline is declared, and every declared part is in one."""
    document = yaml.safe_load((DEPLOY / "otel-collector.yaml").read_text())
    protocols = document["receivers"]["otlp"]["protocols"]
    assert {name: protocol["endpoint"] for name, protocol in protocols.items()} == {
        "grpc": "0.0.0.0:4317",
        "http": "0.0.0.0:4318",
    }
    pipelines = document["service"]["pipelines"]
    assert set(pipelines) == {"traces", "metrics", "logs"}
    for kind in ("receivers", "processors", "exporters"):
        assert {part for pipeline in pipelines.values() for part in pipeline[kind]} == set(document[kind])
    assert "debug" in document["exporters"]
    said = re.search(r"OTEL_EXPORTER_OTLP_ENDPOINT=(\S+) docker compose", FILE.read_text())
    assert said is not None
    where = urlsplit(said[1])
    assert (where.hostname in services, where.port) == (True, 4318)
    assert all(set(services["otel-collector"]["networks"]) & set(services[name]["networks"]) for name in OURS)


def test_the_image_is_built_from_what_there_is(services: dict[str, Any]) -> None:
    """What is copied exists, what is installed is declared, and what is started is installed; not as root."""
    for name in OURS:
        assert services[name]["build"] == {"context": ".", "dockerfile": "deploy/Dockerfile"}
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    steps = [line.split(None, 1) for line in lines]
    copied = [source for verb, rest in steps if verb == "COPY" for source in shlex.split(rest)[:-1]]
    assert set(copied) == {"pyproject.toml", "README.md", "constraints.txt", "observatory", "lua"}
    assert [source for source in copied if not (ROOT / source).exists()] == []

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (installed,) = (rest for verb, rest in steps if verb == "RUN" and "pip install" in rest)
    assert "-c constraints.txt" in installed
    extras = re.search(r'"\.\[([\w,]+)\]"', installed)
    assert extras is not None
    assert set(extras[1].split(",")) == {"service", "cli"} <= set(project["optional-dependencies"])
    assert [json.loads(rest) for verb, rest in steps if verb == "ENTRYPOINT"] == [["observatory"]]
    assert "observatory" in project["scripts"]
    (user,) = (rest for verb, rest in steps if verb == "USER")
    assert int(user) > 0
