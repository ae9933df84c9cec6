"""The HTTP service of the examples streams the text of the model, and the container file that starts it is valid."""

from __future__ import annotations

import ast
import contextlib
import html
import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

import charlstm
from tests.helpers.commands import ROOT, environment, model_file

SERVICE = ROOT / "examples" / "service"
INSTRUCTIONS = "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL RUN SHELL STOPSIGNAL USER VOLUME WORKDIR"

# Starts the service on a free port, writes the port, and reports the modules that were loaded when stdin ends.
START = """
import runpy, sys, threading
from http.server import ThreadingHTTPServer
made = ThreadingHTTPServer.__init__
def announce(self, *arguments):
    made(self, *arguments)
    print(self.server_address[1], flush=True)
ThreadingHTTPServer.__init__ = announce
sys.argv = ["service.py", {checkpoint!r}, "0"]
threading.Thread(target=runpy.run_path, args=({service!r}, None, "__main__"), daemon=True).start()
sys.stdin.read()
print(*sys.modules)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("service") / "model.safetensors", symbols="\n abcdefghé")


@pytest.fixture(scope="module")
def process(checkpoint: Path) -> Iterator[subprocess.Popen[str]]:
    code = START.format(checkpoint=str(checkpoint), service=str(SERVICE / "service.py"))
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(HOST=None),
    ) as running:
        yield running
        running.kill()


@pytest.fixture(scope="module")
def port(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


@contextlib.contextmanager
def asked(port: int, query: str) -> Iterator[http.client.HTTPResponse]:
    """Send a request, and close the connection at the end."""
    with contextlib.closing(http.client.HTTPConnection("localhost", port, timeout=60)) as connection:
        connection.request("GET", f"/{query}")
        with connection.getresponse() as answer:
            yield answer


def get(port: int, query: str) -> tuple[int, str]:
    """Return the status and the text of an answer."""
    with asked(port, query) as answer:
        return answer.status, answer.read().decode()


def test_the_service_streams_the_text_that_the_library_generates(port: int, checkpoint: Path) -> None:
    status, text = get(port, f"?prime={quote('abé')}&length=300&temperature=0.7&seed=5")
    assert status == 200
    model = charlstm.load(checkpoint)
    assert text == model.sample("abé", 300, temperature=0.7, seed=5)
    assert text != model.sample("abé", 300, temperature=0.7, seed=6)
    assert len(get(port, "")[1]) == 500


def test_the_text_arrives_in_several_chunks(port: int) -> None:
    with asked(port, "?length=10000&seed=1") as answer:
        assert answer.headers["Transfer-Encoding"] == "chunked"
        first = answer.read1()
        assert 0 < len(first.decode()) < 1000
        assert len((first + answer.read()).decode()) == 10000


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?prime=xyz", "not in the model"),
        ("?length=none", "invalid literal"),
        ("?length=0", "length must be between 1 and 10000"),
        ("?length=10001", "length must be between 1 and 10000"),
        ("?temperature=nan", "temperature"),
        ("?temperature=-1", "temperature"),
        ("?seed=-1", "seed"),
        ("?colour=red", "colour'; the options are prime, length, temperature, seed"),
        ("?prime=%3Cb%3E", "not in the model"),
    ],
)
def test_an_invalid_request_is_answered_with_the_reason(port: int, query: str, message: str) -> None:
    status, body = get(port, query)
    assert status == 400
    assert message in html.unescape(body)
    assert "<b>" not in body


def test_a_client_that_disconnects_does_not_stop_the_service(port: int) -> None:
    for _ in range(3):
        with asked(port, "?length=10000") as answer:
            answer.read(1)
    assert get(port, "?length=5")[0] == 200


def test_the_service_loads_no_package_that_its_container_lacks(process: subprocess.Popen[str], port: int) -> None:
    """It runs last, because it ends the service."""
    assert get(port, "?length=5")[0] == 200
    _, errors = out = process.communicate()
    loaded = {name.split(".")[0] for name in out[0].split()}
    assert {"charlstm", "numpy", "http"} <= loaded
    assert not loaded & {"torch", "rich", "tqdm", "pooch", "requests", "platformdirs", "filelock"}
    assert "Traceback" not in errors


def instructions(text: str) -> list[tuple[str, str]]:
    """Parse a container file strictly, and return its instructions with their arguments.

    Raises:
        ValueError: an instruction is unknown, misplaced, or has invalid arguments.
    """
    lines = "".join(line for line in text.splitlines(keepends=True) if not line.lstrip().startswith("#"))
    found: list[tuple[str, str]] = []
    stages: list[str] = []
    for line in re.sub(r"\\\n", " ", lines).splitlines():
        if not line.strip():
            continue
        name, _, arguments = line.strip().partition(" ")
        arguments = arguments.strip()
        if name not in INSTRUCTIONS.split() or not arguments:
            raise ValueError(f"{line!r} is not an instruction with arguments")
        if not stages and name not in ("FROM", "ARG"):
            raise ValueError(f"{name} is before FROM")
        command = arguments.removeprefix("CMD ").strip() if name == "HEALTHCHECK" else arguments
        if name in ("CMD", "ENTRYPOINT", "HEALTHCHECK", "SHELL"):
            words = json.loads(command)
            if not (isinstance(words, list) and words and all(isinstance(word, str) for word in words)):
                raise ValueError(f"{name} needs a list of strings")
        elif name == "FROM":
            match = re.fullmatch(r"[\w./-]+:[\w.-]+(?: AS (\w+))?", arguments)
            if match is None:
                raise ValueError(f"{arguments!r} is not an image with a tag")
            stages.append(match[1] or "")
        elif name == "COPY":
            words = arguments.split()
            flags = [word for word in words if word.startswith("--")]
            if len(words) - len(flags) < 2 or not all(re.fullmatch("--(from|chmod)=[\\w]+", flag) for flag in flags):
                raise ValueError(f"{arguments!r} does not name a source and a target")
            if any(flag.startswith("--from=") and flag[7:] not in stages[:-1] for flag in flags):
                raise ValueError(f"{arguments!r} copies from an unknown stage")
        elif name == "EXPOSE" and not arguments.isdecimal():
            raise ValueError(f"{arguments!r} is not a port")
        elif name == "ENV" and not re.fullmatch(r"\w+=\S+", arguments):
            raise ValueError(f"{arguments!r} is not NAME=VALUE")
        elif (
            name == "RUN" and subprocess.run(["sh", "-n", "-c", arguments], check=False, capture_output=True).returncode
        ):
            raise ValueError(f"{arguments!r} is not a valid command of the shell")
        found.append((name, arguments))
    return found


def test_the_container_file_is_valid_and_copies_what_the_project_has() -> None:
    found = instructions((SERVICE / "Containerfile").read_text())
    copied = [arguments.split() for name, arguments in found if name == "COPY" and "--from=" not in arguments]
    sources = [word for words in copied for word in words[:-1] if not word.startswith("--")]
    assert [source for source in sources if not (ROOT / source).exists()] == ["model/best.safetensors"]  # by the user
    start = json.loads(found[-1][1])
    assert found[-1][0] == "CMD"
    assert all(any(target == words[-1] for words in copied) for target in start[1:3])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("USER", "USRE"),
        ("FROM python:3.13-slim", "FROM python"),
        ("EXPOSE 8000", "EXPOSE"),
        ("--from=build", "--from=biuld"),
        ('"8000"]', '"8000"'),
        ("HOST=0.0.0.0", "HOST 0.0.0.0"),
        (" && \\", " && && \\"),
        ("FROM python:3.13 AS build\n", ""),
    ],
)
def test_an_invalid_container_file_is_rejected(old: str, new: str) -> None:
    text = (SERVICE / "Containerfile").read_text()
    assert old in text
    with pytest.raises(ValueError, match=r".+"):
        instructions(text.replace(old, new))


def test_the_service_is_short() -> None:
    code = ast.parse((SERVICE / "service.py").read_text())
    lines = {node.lineno for node in ast.walk(code) if isinstance(node, (ast.stmt, ast.excepthandler))}
    assert len(lines) <= 40
