"""Fixtures of the service's tests. A module gets them by `pytest_plugins = ("service_fixtures",)`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Server, StartServer, save_tiny, serving
from starlette.testclient import TestClient


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights demo, for tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("weights")
    save_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def client(folder: Path) -> Iterator[TestClient]:
    """A client of a service with both back ends and narrow limits, for tests that leave it as it is."""
    narrow = {"max_tokens": 50, "max_prompt_chars": 200, "max_score_chars": 200, "max_request_tokens": 400}
    with serving(folder, max_top_logprobs=5, backends=("c", "torch"), **narrow) as client:
        yield client


@pytest.fixture
def empty_folder(tmp_path: Path) -> Path:
    """A folder that is not there yet, for tests that upload."""
    return tmp_path / "weights"


@pytest.fixture
def empty_client(empty_folder: Path) -> Iterator[TestClient]:
    """A client of a service on `empty_folder`."""
    with serving(empty_folder, max_upload_bytes=200_000) as client:
        yield client


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a weights file."""
    return save_tiny(tmp_path_factory.mktemp("source")).read_bytes()


@pytest.fixture
def server_folder(tmp_path: Path) -> Path:
    """A folder with weights that take a while, for real servers."""
    folder = tmp_path / "weights"
    folder.mkdir()
    save_tiny(folder, vocab=600, hidden=40)
    return folder


@pytest.fixture
def start(server_folder: Path, tmp_path: Path) -> Iterator[StartServer]:
    """Starts real servers on `server_folder`; they end with the test."""
    servers: list[Server] = []

    def start(*options: str, **environment: str) -> Server:
        servers.append(Server(server_folder, tmp_path / f"log{len(servers)}", *options, **environment))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
