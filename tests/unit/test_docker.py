"""Every command, path, port and variable named in docker/ exists: no engine runs here to say so."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from celery.bin.celery import celery
from flower import options as flower_options
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel, SecretStr
from sqlalchemy import make_url
from typer.testing import CliRunner

from captioner.cli.main import app as captioner
from captioner.queues import JOB_QUEUES
from captioner.settings import (
    ENVIRONMENT_PREFIX,
    BrokerSettings,
    Settings,
    WorkerSettings,
)
from servers import RedisServer

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
GPU: dict[str, Any] = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
EVERYTHING = {
    path.name: path.read_text()
    for path in [*DOCKER.iterdir(), ROOT / "Makefile"]
    if path.is_file() and path.name != ".env"
}


def instructions(keyword: str) -> list[str]:
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [rest.strip() for word, rest in lines if word == keyword]


def variables(model: type[BaseModel], prefix: str) -> set[str]:
    names: set[str] = set()
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names |= variables(kind, f"{prefix}{name.upper()}__")
        else:
            names.add(prefix + name.upper())
    return names


def stages() -> dict[str, str]:
    pairs = [line.split(" AS ") for line in instructions("FROM")]
    return {name: image for image, name in pairs}


def image_environment() -> dict[str, str]:
    words = shlex.split(" ".join(instructions("ENV")))
    return dict(word.split("=", 1) for word in words)


@pytest.mark.parametrize("file", EVERYTHING)
def test_every_captioner_variable_is_a_setting(file: str) -> None:
    named = set(re.findall(rf"{ENVIRONMENT_PREFIX}[A-Z_]+", EVERYTHING[file]))
    assert named <= variables(Settings, ENVIRONMENT_PREFIX)


def test_the_settings_are_found() -> None:
    assert "CAPTIONER_DATABASE__URL" in variables(Settings, ENVIRONMENT_PREFIX)
    assert "CAPTIONER_DATA_DIR" in variables(Settings, ENVIRONMENT_PREFIX)


# --- Dockerfile -----------------------------------------------------------------------------------


def test_stages_are_defined_before_they_are_used_and_cpu_is_the_default() -> None:
    known: list[str] = []
    for name, image in stages().items():
        assert image in known or ":" in image
        known.append(name)
    assert known[-1] == "cpu"
    assert "cuda" in known
    copied_from = [w for line in instructions("COPY") for w in re.findall(r"--from=(\S+)", line)]
    assert copied_from
    assert set(copied_from) <= set(known)


def test_copied_files_exist_and_are_sent_to_the_builder() -> None:
    rules = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    sent = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        source
        for line in instructions("COPY")
        if "--from" not in line
        for source in line.split()[:-1]
    }
    assert rules.index("*") < min(rules.index(f"!{name}") for name in sent), (
        "what is not named stays"
    )
    assert copied == sent
    assert all((ROOT / source).exists() for source in copied)
    # What the build reads, by pyproject.toml: the readme, the licence and the wheel's folders.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    read = {project["project"]["readme"], *project["project"]["license-files"]}
    read |= {package.split("/")[0] for package in wheel["packages"]}
    read.add(wheel["hooks"]["custom"]["path"].split("/")[0])
    assert read <= copied


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"captioner\[([\w,-]+)\]", DOCKERFILE)
    assert named
    assert {e for extras in named for e in extras.split(",")} <= set(
        project["optional-dependencies"]
    )


def test_whatever_the_project_asks_for_is_pinned_within_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for more in [*project["project"]["optional-dependencies"].values()]:
        asked += more
    for group in project["dependency-groups"].values():
        asked += [item for item in group if isinstance(item, str)]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        if name != project["project"]["name"]:
            assert requirement.specifier.contains(pins[name]), requirement


def test_the_image_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    images = [service["image"] for service in OURS.values()] + [GPU["services"]["worker"]["image"]]
    assert {image.split(":")[1].rsplit("-", 1)[0] for image in images} == {project["version"]}


def test_every_foreign_image_is_pinned_by_a_tag() -> None:
    foreign = [image for image in stages().values() if image not in stages()]
    foreign += [service["image"] for name, service in SERVICES.items() if name not in OURS]
    assert len(foreign) >= 3
    for image in foreign:
        assert re.fullmatch(r"[a-z/]+:\d[\w.-]*", image), image


def test_the_container_is_not_root_and_stops_warmly() -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", instructions("USER")[-1])
    assert instructions("STOPSIGNAL") == ["SIGTERM"]


def test_folders_of_the_image_belong_together() -> None:
    volumes = json.loads(instructions("VOLUME")[0])
    environment = image_environment()
    assert environment["HF_HOME"] in volumes
    assert environment["CAPTIONER_DATA_DIR"] in volumes
    made = next(line for line in instructions("RUN") if "chown" in line)
    assert all(made.count(volume) == 2 for volume in volumes)


def test_the_health_check_asks_the_worker_by_its_name() -> None:
    default = WorkerSettings().name
    (check,) = instructions("HEALTHCHECK")
    program = json.loads(check.partition("CMD ")[2])
    assert program[:2] == ["sh", "-c"]
    words = program[2].split()
    assert words[:5] == ["celery", "-A", "captioner", "inspect", "ping"]
    assert f"--destination={default.replace('%h', '$HOSTNAME')}" in words
    known = [option for parameter in celery.commands["inspect"].params for option in parameter.opts]
    assert {word.partition("=")[0] for word in words[5:]} <= set(known)


# --- Commands -------------------------------------------------------------------------------------


def captioner_commands() -> dict[str, list[str]]:
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["captioner"]
    commands = {"Dockerfile": json.loads(instructions("CMD")[0])}
    commands |= {
        f"compose.yaml {name}": service["command"]
        for name, service in OURS.items()
        if "entrypoint" not in service
    }
    named = r"\bcaptioner ((?:submit|list|db|webhooks) .*|list)"
    for text in re.findall(named, EVERYTHING["README.md"]):
        words = text.partition("`")[0].split()
        commands[f"README.md {' '.join(words)}"] = words
    assert len(commands) >= 5
    return commands


@pytest.mark.parametrize("where", captioner_commands())
def test_every_captioner_command_exists(where: str) -> None:
    words = captioner_commands()[where]
    plain = [word for word in words if not word.startswith(("-", "/"))]
    told = CliRunner().invoke(captioner, [*plain, "--help"])
    assert told.exit_code == 0, told.output
    for option in words:
        if option.startswith("-"):
            assert re.search(rf"\s{option}\b", told.output), f"{option}: not in\n{told.output}"


def test_flower_takes_its_options() -> None:
    service = SERVICES["flower"]
    assert service["entrypoint"] == ["celery", "-A", "captioner", "flower"]
    assert "flower" in celery.commands
    known = set(flower_options.default_options)
    given = dict(option.removeprefix("--").split("=") for option in service["command"])
    assert set(given) <= known
    assert given["read_only"] == "true"
    from_environment = {name for name in service["environment"] if name.startswith("FLOWER_")}
    assert {name.removeprefix("FLOWER_").lower() for name in from_environment} <= known
    assert ":?" in service["environment"]["FLOWER_BASIC_AUTH"], "no Flower without a password"


@pytest.mark.integration
def test_redis_takes_its_options_and_keeps_every_message() -> None:
    service = SERVICES["redis"]
    shell, flag, script = service["command"]
    assert (shell, flag) == ("sh", "-c")
    words = shlex.split(script.replace("$$REDIS_PASSWORD", "secret"))
    assert words[:2] == ["exec", "redis-server"]
    with (
        RedisServer(options=tuple(words[2:]), password="secret") as server,
        redis.Redis.from_url(server.url) as client,
    ):
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        # What a worker could only read whole, and then refuse, does not get in.
        largest = int(client.config_get("proto-max-bulk-len")["proto-max-bulk-len"])
        assert 4 * BrokerSettings().max_message_bytes <= largest <= 2**23
        with pytest.raises(redis.ConnectionError):
            client.lpush("captioner:captions", b"x" * (largest + 1))
        client.lpush("captioner:captions", b"x" * largest)
        server.restart()
        assert client.llen("captioner:captions") == 1


# --- Compose --------------------------------------------------------------------------------------


def test_variables_are_the_ones_of_the_example() -> None:
    required, optional = set(), {}
    for name, operator, rest in re.findall(
        r"(?<!\$)\$\{(\w+)(:\?|:-)([^}]*)\}", EVERYTHING["compose.yaml"]
    ):
        if operator == ":?":
            required.add(name)
        else:
            optional[name] = rest
    assert "$" not in re.sub(
        r"\$\{\w+:[?-][^}]*\}|\$\$REDIS_PASSWORD", "", EVERYTHING["compose.yaml"]
    )
    example = EVERYTHING[".env.example"]
    assert set(re.findall(r"^(\w+)=$", example, re.MULTILINE)) == required
    assert dict(re.findall(r"^# (\w+)=(.*)$", example, re.MULTILINE)) == optional
    assert not any("PASSWORD" in name or "AUTH" in name for name in optional), "no weak defaults"


def test_the_example_is_not_the_file_that_holds_passwords() -> None:
    assert ".env" in (DOCKER / ".gitignore").read_text().split()


def test_builds_name_what_exists() -> None:
    for service in [*OURS.values(), GPU["services"]["worker"]]:
        build = service["build"]
        assert build["target"] in stages()
        if "context" in build:
            assert (DOCKER / build["context"]).resolve() == ROOT
            assert (DOCKER / build["context"] / build["dockerfile"]).is_file()
    assert set(GPU["services"]) <= set(SERVICES)


def test_services_wait_for_what_can_be_waited_for() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "test" in SERVICES[other]["healthcheck"], (name, other)
            else:
                assert how["condition"] == "service_completed_successfully"
                assert SERVICES[other]["restart"] == "no", (name, other)
    for name in ("worker", "events"):
        assert set(SERVICES[name]["depends_on"]) == {"migrate", "redis"}


def test_every_queue_has_a_worker() -> None:
    broker = BrokerSettings(url=SecretStr("redis://redis"))
    assert SERVICES["worker"]["command"] == ["worker"]
    assert Settings(broker=broker).queues == ",".join(JOB_QUEUES), "all but events"
    assert SERVICES["events"]["command"] == ["worker", "--queues", "events"]


def test_workers_have_one_key_of_webhooks_and_reach_the_same_hosts() -> None:
    """Who registers a receiver does so in a worker; another one signs what it is sent."""
    worker, events = SERVICES["worker"], SERVICES["events"]
    folder = image_environment()["CAPTIONER_DATA_DIR"]
    assert events["volumes"] == [f"data:{folder}"]
    assert f"data:{folder}" in worker["volumes"]
    for name in ("WEBHOOKS__ENCRYPTION_KEY", "MEDIA__ALLOWED_HOSTS", "MEDIA__ALLOWED_PORTS"):
        variable = ENVIRONMENT_PREFIX + name
        assert worker["environment"][variable] == events["environment"][variable]


def test_addresses_name_services_and_their_ports() -> None:
    ports = {"redis": 6379, "postgres": 5432}
    for service in OURS.values():
        for variable in ("CAPTIONER_DATABASE__URL", "CAPTIONER_BROKER__URL"):
            url = make_url(re.sub(r"\$\{[^}]*\}", "x", service["environment"][variable]))
            assert url.host in SERVICES
            assert url.port == ports[url.host]
            if url.host == "postgres":
                assert url.drivername == "postgresql+psycopg"
                assert url.username == SERVICES["postgres"]["environment"]["POSTGRES_USER"]
                assert url.database == SERVICES["postgres"]["environment"]["POSTGRES_DB"]


def test_only_flower_is_published_and_only_on_this_host() -> None:
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"flower"}
    flower = SERVICES["flower"]
    (published,) = flower["ports"]
    inner = published.rpartition(":")[2]
    assert published.startswith("127.0.0.1:")
    assert f"--port={inner}" in flower["command"]
    assert f"127.0.0.1:{inner}/healthcheck" in flower["healthcheck"]["test"][-1]


def test_volumes_are_declared_and_mounted_where_they_are_read() -> None:
    mounts = [
        tuple(re.sub(r"\$\{[^}]*\}", "HOST", volume).split(":"))
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
    ]
    assert {mount[0] for mount in mounts} - {"HOST"} == set(COMPOSE["volumes"])
    worker_mounts = {tuple(volume.rsplit(":", 2)[-2:]) for volume in SERVICES["worker"]["volumes"]}
    allowed = SERVICES["worker"]["environment"]["CAPTIONER_MEDIA__ALLOWED_ROOTS"]
    assert (allowed, "ro") in worker_mounts
    assert f"models:{image_environment()['HF_HOME']}" in SERVICES["worker"]["volumes"]


@pytest.mark.parametrize("name", ["worker", "events"])
def test_a_worker_has_time_to_finish(name: str) -> None:
    assert SERVICES[name]["stop_grace_period"] == "2m"


@pytest.mark.parametrize("file", EVERYTHING)
def test_files_named_in_texts_exist(file: str) -> None:
    for name in re.findall(r"\b((?:docker|tests)/[\w./-]*\w\.?\w*)", EVERYTHING[file]):
        # The one is for each to write, the other is the builder's syntax.
        if name not in ("docker/.env", "docker/dockerfile"):
            assert (ROOT / name).exists(), name
