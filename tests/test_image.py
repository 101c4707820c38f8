"""`Dockerfile.cuda` agrees with the package, with its pinned versions and with itself; no container engine is needed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nightstream

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEXT = (ROOT / "Dockerfile.cuda").read_text()
LINES = re.sub(r"\\\n", " ", TEXT).splitlines()


def arguments(instruction: str) -> list[str]:
    """What follows ``instruction``, line by line."""
    return [line.removeprefix(instruction).strip() for line in LINES if line.startswith(instruction + " ")]


def pins(major: int) -> dict[str, str]:
    """Package and version, as docker/pin.sh wrote them."""
    lines = (ROOT / "docker" / f"constraints-cuda{major}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def extras(major: int) -> list[str]:
    """The extras that the image installs."""
    return re.search(r"\.whl\)\[(.*?)\]", TEXT)[1].replace("${CUDA}", str(major)).split(",")


def requirements(names: list[str]) -> list[Requirement]:
    """What the package and these extras of it require, the extras' own extras included."""
    listed = [*PROJECT["dependencies"], *(line for name in names for line in PROJECT["optional-dependencies"][name])]
    found = [Requirement(line) for line in listed]
    more = [extra for one in found if one.name == PROJECT["name"] for extra in one.extras]
    return [one for one in found if one.name != PROJECT["name"]] + (requirements(more) if more else [])


@pytest.mark.parametrize("major", [12, 13])
def test_every_requirement_is_pinned(major):
    """The pinned versions are ones that pyproject.toml allows."""
    versions = pins(major)
    for requirement in requirements(extras(major)):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), str(requirement)


@pytest.mark.parametrize("major", [12, 13])
def test_base_image_and_toolkit_are_of_one_cuda_version(major):
    """What NVRTC compiles then suits every driver that the base image accepts."""
    (base,) = (image for image in arguments("FROM") if image.endswith(f" AS cuda{major}"))
    version = re.match(r"nvidia/cuda:(\d+\.\d+\.\d+)-base-ubuntu24\.04 ", base)[1]
    assert version.startswith(f"{major}.") and pins(major)["cuda-toolkit"].startswith(version)


def test_one_argument_chooses_the_cuda_version():
    """Base image, extra and constraints all follow CUDA, so none can be combined with another's."""
    assert {argument.partition("=")[0] for argument in arguments("ARG")} == {"CUDA", "REVISION"}
    assert arguments("FROM")[-1] == "cuda${CUDA}" and extras(13)[0] == "cuda13-wheels"
    assert any("constraints-cuda${CUDA}.txt" in copy for copy in arguments("COPY"))


def test_images_are_pinned():
    """Each is named by its full version."""
    images = [image for image in arguments("FROM") if ":" in image]
    assert len(images) == 3 and all(re.search(r":\d+\.\d+\.\d+-", image) for image in images)


def test_it_runs_as_a_numbered_user():
    """Not root, and by number, since Kubernetes can only then see that it is not root."""
    assert [user for user in arguments("USER") if re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)] == arguments("USER") != []


def test_health_asks_for_the_card():
    """`nightstream info` fails where the environment asks for a card and none works; tini reaps what actors leave."""
    assert arguments("HEALTHCHECK")[0].endswith('CMD ["nightstream", "info"]') and "NIGHTSTREAM_DEVICE=gpu" in TEXT
    assert arguments("ENTRYPOINT") == ['["tini", "--", "nightstream"]']


def test_what_is_copied_is_there():
    """And .dockerignore lets it through."""
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [copy.split()[0] for copy in arguments("COPY") if not copy.startswith("--from")]
    for major in (12, 13):
        paths = [source.replace("${CUDA}", str(major)) for source in copied]
        assert paths[0] == "." and all((ROOT / path).exists() and path.split("/")[0] in {".", *let_through} for path in paths)
    assert all((ROOT / path).exists() for path in let_through)


def test_the_label_has_the_version():
    """That of the package."""
    assert f'org.opencontainers.image.version="{nightstream.__version__}"' in TEXT
