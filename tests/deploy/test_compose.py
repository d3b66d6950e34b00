"""compose.yaml, by Compose itself and by the published schema: nothing is started here."""

from __future__ import annotations

import importlib.util
import json
import re
import stat
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.files import (
    COMPOSE,
    DEPLOY,
    DOCKERFILES,
    PINNED,
    command_of,
    compose,
    images,
    services,
    settings_of,
)

PROFILES = {
    "cpu": {"api", "page"},
    "gpu": {"api-gpu", "page"},
    "triton": {"triton-models", "triton", "api-triton", "page"},
    "mlflow": {"mlflow", "postgres", "minio", "minio-bucket"},
}
SECRETS = (
    "OVERLAY_API_KEY",
    "MLFLOW_ADMIN_PASSWORD",
    "MLFLOW_SESSION_KEY",
    "POSTGRES_PASSWORD",
    "MINIO_PASSWORD",
)
#: These run once and end.
ONCE = {"triton-models", "minio-bucket"}


def loaded(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, DEPLOY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Secrets as make_env.py writes them."""
    folder = tmp_path_factory.mktemp("env")
    (folder / ".env.example").write_text((DEPLOY / ".env.example").read_text())
    assert loaded("make_env").main(folder) == 0
    return folder / ".env"


@pytest.fixture(scope="module")
def everything(env: Path) -> dict[str, dict[str, Any]]:
    return {name: one for profile in PROFILES for name, one in services(profile, env).items()}


def schema() -> dict[str, Any]:
    file = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def test_the_file_follows_the_published_schema() -> None:
    jsonschema.validate(yaml.safe_load(COMPOSE.read_text()), schema())


def test_the_schema_notices_a_wrong_key() -> None:
    broken = yaml.safe_load(COMPOSE.read_text())
    broken["services"]["api"]["healthchek"] = {}
    with pytest.raises(jsonschema.ValidationError, match="healthchek"):
        jsonschema.validate(broken, schema())


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_has_its_services(profile: str, env: Path) -> None:
    assert set(services(profile, env)) == PROFILES[profile]


def test_nothing_starts_without_a_profile(env: Path) -> None:
    code, out, err = compose("config", "--services", secrets=env)
    assert (code, out.split()) == (0, []), err


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("left", ["", None], ids=["empty", "missing"])
def test_compose_refuses_to_start_without_a_secret(
    name: str, left: str | None, env: Path, tmp_path: Path
) -> None:
    given = "" if left is None else f"{name}={left}\n"
    changed = tmp_path / "env"
    changed.write_text(re.sub(rf"^{name}=.*\n", given, env.read_text(), flags=re.M))
    code, _, err = compose("--profile", "cpu", "config", "-q", secrets=changed)
    assert code != 0
    assert name in err
    assert "set it in .env" in err


def test_no_use_of_a_secret_has_a_default() -> None:
    """One use that asks for it would hide another that does not."""
    text = COMPOSE.read_text()
    for name in SECRETS:
        uses = re.findall(rf"\$\{{?{name}(.{{2}})", text)
        assert uses, name
        assert set(uses) == {":?"}, name
    told = set(re.findall(r"(\w*(?:PASSWORD|SECRET|KEYS?)\w*):? ", text, re.A))
    for key in told - set(SECRETS):  # nor is one written down
        assert re.search(rf"{key}: (\$\{{\w+:\?|mlflow$)", text, re.M), key


def test_secrets_are_random_and_for_their_owner_alone(env: Path) -> None:
    values = dict(line.split("=") for line in re.findall(r"^\w+=\w+$", env.read_text(), re.M))
    assert set(values) == set(SECRETS)
    assert len(set(values.values())) == len(SECRETS)
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in values.values())
    assert stat.S_IMODE(env.stat().st_mode) == 0o600


def test_secrets_that_are_there_are_kept(env: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = env.read_bytes()
    assert loaded("make_env").main(env.parent) == 1
    assert env.read_bytes() == before
    assert "is kept" in capsys.readouterr().err


def test_ports_are_open_to_this_machine_alone(everything: dict[str, dict[str, Any]]) -> None:
    ports = {name: port for name, one in everything.items() for port in one.get("ports", ())}
    assert set(ports) == {"api", "api-gpu", "api-triton", "page", "mlflow"}
    assert {port["host_ip"] for port in ports.values()} == {"127.0.0.1"}


def test_every_service_is_locked_in(everything: dict[str, dict[str, Any]]) -> None:
    for name, one in everything.items():
        assert one["read_only"], name
        assert one["cap_drop"] == ["ALL"], name
        assert one["security_opt"] == ["no-new-privileges:true"], name
        assert any(mount.startswith("/tmp:") for mount in one["tmpfs"]), name
        assert not one.get("privileged"), name
        assert one["restart"] == ("no" if name in ONCE else "unless-stopped"), name
        assert all(mount["type"] == "volume" for mount in one.get("volumes", ())), name


def test_images_of_others_are_pinned_and_not_root(everything: dict[str, dict[str, Any]]) -> None:
    for name, one in everything.items():
        if "build" not in one:
            assert PINNED.fullmatch(one["image"]), one["image"]
            assert name == "minio" or not one["user"].startswith("0"), name


def test_what_is_built_is_a_stage(everything: dict[str, dict[str, Any]]) -> None:
    for name, one in everything.items():
        if build := one.get("build"):
            file = Path(build["context"]) / build["dockerfile"]
            assert file in DOCKERFILES, name
            assert build.get("target", "") in images(file), name


def test_every_service_tells_its_health(everything: dict[str, dict[str, Any]]) -> None:
    """Those that are built here say it in the Dockerfile."""
    for name, one in everything.items():
        if "build" not in one and name not in ONCE:
            assert one["healthcheck"]["test"][0] == "CMD", name


def test_who_is_waited_for_is_waited_for_until_it_works(
    everything: dict[str, dict[str, Any]],
) -> None:
    for name, one in everything.items():
        for other, how in (one.get("depends_on") or {}).items():
            expected = "service_completed_successfully" if other in ONCE else "service_healthy"
            assert how["condition"] == expected, (name, other)


@pytest.mark.parametrize("name", ["api", "api-gpu", "api-triton"])
def test_the_api_understands_its_environment(
    name: str, everything: dict[str, dict[str, Any]]
) -> None:
    environ = {key: str(value) for key, value in everything[name]["environment"].items()}
    settings = settings_of(environ)
    assert len(settings.api_keys) == 1
    assert settings.backend == ("triton" if name == "api-triton" else "local")


def test_the_page_asks_the_api_of_its_profile(env: Path) -> None:
    for profile in ("cpu", "gpu", "triton"):
        found = services(profile, env)
        command = command_of(DOCKERFILES[0], "page")
        host = re.fullmatch(r"http://([\w-]+):8000", command[command.index("--api") + 1])
        assert host
        aliases = [
            name
            for name, one in found.items()
            for network in (one.get("networks") or {}).values()
            if host[1] in ((network or {}).get("aliases") or ())
        ]
        assert len(aliases) == 1, profile


def test_databases_cannot_be_reached_from_outside(everything: dict[str, dict[str, Any]]) -> None:
    networks = yaml.safe_load(COMPOSE.read_text())["networks"]
    for name in ("postgres", "minio", "minio-bucket", "triton"):
        assert all(networks[network]["internal"] for network in everything[name]["networks"]), name
        assert "ports" not in everything[name]


Break = Callable[[str], str]


@pytest.mark.parametrize(
    "broken",
    [
        lambda text: text.replace("condition: service_healthy", "condition: service_fit"),
        lambda text: text.replace("networks: [inference]", "networks: [inferense]"),
        lambda text: text.replace("- --model-repository=/models", "  --model-repository: ["),
    ],
    ids=["condition", "network", "syntax"],
)
def test_compose_notices_what_is_wrong(broken: Break, env: Path, tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(broken(COMPOSE.read_text()))
    assert file.read_text() != COMPOSE.read_text()
    code, _, _ = compose("--profile", "triton", "config", "-q", secrets=env, file=file)
    assert code != 0
