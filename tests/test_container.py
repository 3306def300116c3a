"""The files of docker/, as far as they can be checked where no image is built."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from glm_trt.cli import make_parser
from glm_trt.engines.build.wheel import FILES, PACKAGES
from glm_trt.engines.serve.limits import Limits

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
IMAGES = ("cpu", "cuda")


def stage(name: str) -> list[tuple[str, str]]:
    """Instructions of a stage with what follows each."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    begin = next(i for i, (_, rest) in enumerate(lines) if rest.endswith(f" AS {name}"))
    rest = lines[begin + 1 :]
    end = next((i for i, (word, _) in enumerate(rest) if word == "FROM"), len(rest))
    return [(word, text) for word, text in rest[:end]]


def only(name: str, word: str) -> str:
    found = [text for instruction, text in stage(name) if instruction == word]
    assert len(found) == 1, (name, word, found)
    return found[0]


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    return yaml.safe_load((DOCKER / name).read_text())


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_the_server_as_nobody(image: str) -> None:
    entry, command = (json.loads(only(image, word)) for word in ("ENTRYPOINT", "CMD"))
    assert entry == ["/opt/glm-trt/bin/glm-trt"]  # no shell before it: signals reach it
    options = make_parser().parse_args(command)
    assert (str(options.bundle), options.host, options.port) == ("/bundle", "0.0.0.0", 8000)
    assert options.provider == (None if image == "cpu" else "cuda")
    assert only(image, "EXPOSE") == str(options.port) and only(image, "VOLUME") == "/bundle"
    assert "ORT_DISABLE_TELEMETRY=1" in only(image, "ENV")
    user, group = only(image, "USER").split(":")
    assert int(user) > 1000 and int(group) > 1000
    (add_user,) = [text for word, text in stage(image) if word == "RUN"]
    assert f"--uid {user} " in add_user and f"--gid {group} " in add_user


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_healthy_while_it_is_ready(image: str) -> None:
    flags, _, command = only(image, "HEALTHCHECK").partition("CMD ")
    python, option, code = json.loads(command)
    assert (python, option) == ("/opt/glm-trt/bin/python", "-c") and "--start-period=" in flags
    compile(code, "healthcheck", "exec")
    assert "http://127.0.0.1:8000/ready" in code


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_nothing_that_builds(image: str) -> None:
    (run,) = [text for word, text in stage(image) if word == "RUN"]
    (packages,) = re.findall(r"--no-install-recommends (.*?) &&", run)
    assert packages.split() == ["python3"]
    assert only(image, "COPY") == f"--from={image}-build /opt/glm-trt /opt/glm-trt"
    assert "pip uninstall" in (DOCKER / "install.sh").read_text()
    (install,) = [x for _, x in stage(f"{image}-build") if "install.sh" in x]
    project = (ROOT / "pyproject.toml").read_text()
    for extra in install.split()[-1].split(","):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_what_is_sent_to_the_builder_is_what_it_installs() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert kept == {*PACKAGES, *FILES, "constraints.txt", "docker/install.sh"}
    assert all((ROOT / name).exists() for name in kept)


def test_the_composition_names_what_there_is() -> None:
    services = compose()["services"]
    config = yaml.safe_load((ROOT / "examples/monitoring/prometheus.yml").read_text())
    targets = config["scrape_configs"][0]["static_configs"][0]["targets"]
    assert targets == ["glm-trt:8000"] and "glm-trt" in services
    source = yaml.safe_load(
        (ROOT / "examples/monitoring/grafana/provisioning/datasources/prometheus.yaml").read_text()
    )
    assert source["datasources"][0]["url"] == "http://prometheus:9090" and "prometheus" in services
    for name in ("prometheus", "grafana"):
        for volume in services[name]["volumes"]:
            place, _, rest = volume.partition(":")
            if place.startswith(".."):
                assert (DOCKER / place).resolve().exists() and rest.endswith(":ro"), volume
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]) or "build" in service


def test_the_composed_server_may_write_nothing() -> None:
    server = compose()["services"]["glm-trt"]
    (bundle,) = server["volumes"]
    assert bundle["target"] == "/bundle" and bundle["read_only"] is True
    assert server["read_only"] is True and server["cap_drop"] == ["ALL"]
    assert server["build"]["target"] == "cpu"
    assert float(server["stop_grace_period"].removesuffix("s")) > Limits().grace_seconds
    on_gpu = compose("compose.cuda.yaml")["services"]["glm-trt"]
    assert on_gpu["build"]["target"] == "cuda"
    context = (DOCKER / server["build"]["context"]).resolve()
    assert (context / server["build"]["dockerfile"]).is_file() and context == ROOT


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(["hadolint", str(DOCKER / "Dockerfile")], check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout
