"""Settings, and what the log shows of them."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, free_port
from serving import GUARD_SECONDS, StartServer, needs_library, until

from service import logs
from service.settings import Settings, SettingsError, table, unknown, variable

pytest_plugins = ("service_fixtures",)
pytestmark = needs_library


@pytest.mark.parametrize("options", [(), pytest.param(("--workers", "2"), marks=pytest.mark.slow)])
def test_a_setting_out_of_range_is_told_in_one_line(server_folder: Path, options: tuple[str, ...]) -> None:
    environment = {**os.environ, "RNN_MAX_TOKENS": "many"}
    command = [sys.executable, "-m", "uvicorn", "api:app", "--port", "0", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=GUARD_SECONDS)
    assert "api.py: RNN_MAX_TOKENS must be an integer, got 'many'" in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert done.returncode == (0 if options else 3)  # uvicorn's own, as docs/serving.md says


@pytest.mark.parametrize(
    ("folder", "problem"),
    [
        ("/nonexistent", "'/nonexistent', which does not exist: name a folder that can be written, or unset it"),
        ("README.md", "'README.md', which is not a folder: name a folder that can be written, or unset it"),
        ("README.md/metrics", "'README.md/metrics', which does not exist: "),
        ("", "empty: name a folder that can be written, or unset it"),
        pytest.param(
            "/proc",
            "'/proc', which cannot be written (",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="/proc"),
        ),
    ],
)
def test_a_metrics_folder_that_cannot_be_used_is_told_in_one_line(
    server_folder: Path, folder: str, problem: str
) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": folder, "PORT": str(free_port())}
    command = [sys.executable, "-m", "service"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=GUARD_SECONDS)
    assert done.returncode == 3 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"api.py: PROMETHEUS_MULTIPROC_DIR is {problem}"), done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", "0"),
        ("max_tokens", "1.5"),
        ("request_seconds", "nan"),
        ("request_seconds", "-1"),
        ("max_body_bytes", "10"),
        ("backends", "c,jax"),
        ("backends", ","),
        ("preload", "torch2"),
        ("precision", "float8"),
        ("weights_mode", "copy"),
        ("log_level", "loud"),
        ("api_token", "short"),
        ("admin_token", "with a space"),
        ("max_sequences", "0"),
        ("allowed_origins", "example.org"),
        ("allowed_origins", "https://example.org/page"),
    ],
)
def test_settings_out_of_range(name: str, value: str) -> None:
    environment = {variable(name): value}
    with pytest.raises(SettingsError, match=variable(name)) as caught:
        Settings.from_environment(environment)
    assert "\n" not in str(caught.value)


def test_a_number_out_of_range_is_shown_as_its_limit() -> None:
    with pytest.raises(SettingsError, match=r"^RNN_MAX_TOKENS must be from 1 to 1,048,576, got 2,000,000$"):
        Settings.from_environment({"RNN_MAX_TOKENS": "2000000"})


def test_settings_from_the_environment() -> None:
    environment = {"RNN_PRELOAD": "c, torch", "RNN_MAX_TOKENS": "7", "RNN_REQUEST_SECONDS": "2.5", "RNN_API_TOKEN": ""}
    settings = Settings.from_environment(environment)
    assert (settings.preload, settings.max_tokens, settings.request_seconds) == (("c", "torch"), 7, 2.5)
    assert settings.api_token == "" and settings.weights_dir == Path("weights")


def test_the_table_names_every_setting() -> None:
    from dataclasses import fields

    assert all(f"| `{variable(spec.name)}` |" in table() for spec in fields(Settings))


def test_a_slip_of_the_pen_is_told(start: StartServer) -> None:
    server = start(RNN_MAX_TOKNES="5", RNN_QWERTZ="1", RNN_CACHE_DIR="/tmp")
    said = [line["message"] for line in server.lines() if line["logger"] == "api"]
    assert said == [
        "RNN_MAX_TOKNES is not a setting: do you mean RNN_MAX_TOKENS?",
        "RNN_QWERTZ is not a setting, and has no effect",
    ]


def test_what_a_slip_may_stand_for() -> None:
    """Told as for options and fields: a shortened name, but no name that only shares the prefix."""
    assert unknown({"RNN_WEIGHTS": "", "RNN_SLOTS": "", "RNN_APITOKEN": "", "RNN_ISA": "", "HOME": ""}) == [
        "RNN_APITOKEN is not a setting: do you mean RNN_API_TOKEN?",
        "RNN_SLOTS is not a setting, and has no effect",
        "RNN_WEIGHTS is not a setting: do you mean RNN_WEIGHTS_DIR?",
    ]


def test_no_log_level_hides_the_token_and_nothing_else_shows_one(start: StartServer) -> None:
    server = start(RNN_ADMIN_TOKEN="", RNN_API_TOKEN="user-secret", RNN_LOG_LEVEL="error")
    (line,) = (line for line in server.lines() if "admin token is" in line["message"])
    token = line["message"].rsplit(" ", 1)[1]
    assert len(token) == 64 and line["severity"] == "WARNING"
    for secret in (token, "user-secret"):
        server.get(f"/weights?token={secret}", headers={"authorization": f"Bearer {secret}"})
        server.post("/generate/c", content=b"{", headers={"authorization": f"Bearer {secret}"})
    assert server.text().count(token) == 1 and "user-secret" not in server.text()
    assert "secret" not in repr(Settings(api_token="user-secret", admin_token="admin-secret"))


def test_the_log_is_what_cloud_logging_reads(start: StartServer) -> None:
    server = start(GOOGLE_CLOUD_PROJECT="my-project")
    trace = "105445aa7843bc8bf206b12000100000"
    server.get("/health?secret=1", headers={"x-cloud-trace-context": f"{trace}/1;o=1", "x-request-id": "mine"})
    line: dict[str, Any] = until(lambda: [line for line in server.lines() if line.get("request_id") == "mine"])[0]
    assert line["severity"] == "INFO" and line["message"] == "GET /health 200"
    assert line["httpRequest"]["status"] == 200 and re.fullmatch(r"\d+\.\d+s", line["httpRequest"]["latency"])
    assert line["logging.googleapis.com/trace"] == f"projects/my-project/traces/{trace}"
    assert "secret" not in server.text()


def record(message: str, level: int = logging.INFO, **fields: Any) -> logging.LogRecord:
    found = logging.LogRecord("test", level, __file__, 1, message, (), None)
    if fields:
        found.fields = fields
    return found


def test_a_terminal_gets_readable_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    formatter = logs.TerminalFormatter()
    request = record("GET /health 200", httpRequest={"latency": "0.012345s"}, request_id="x")
    assert re.fullmatch(r"\d\d:\d\d:\d\d  GET /health 200  12\.3 ms", formatter.format(request))
    assert formatter.format(record("no weights", logging.WARNING)).endswith("  warning: no weights")
    assert formatter.format(record("GET /\x1b[2J\n 404")).endswith("GET /\\x1b[2J\\n 404")  # a terminal would obey it
    handlers = logging.getLogger().handlers[:]
    for is_terminal, kind in ((True, logs.TerminalFormatter), (False, logs.JsonFormatter)):
        monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda it=is_terminal: it, write=print))
        try:
            logs.configure("info")
            assert isinstance(logging.getLogger().handlers[0].formatter, kind)
        finally:
            logging.getLogger().handlers[:] = handlers
            logging.captureWarnings(False)


def test_the_start_names_a_folder_without_weights(start: StartServer, server_folder: Path) -> None:
    missing = server_folder / "modles"
    server = start(RNN_WEIGHTS_DIR=str(missing))
    (line,) = (line for line in server.lines() if str(missing) in line["message"])
    assert (
        line["severity"] == "WARNING" and "does not exist" in line["message"] and "RNN_WEIGHTS_DIR" in line["message"]
    )
    assert str(missing) in server.get("/ready").json()["detail"]


def test_the_start_names_a_default_that_is_missing(start: StartServer) -> None:
    server = start(RNN_DEFAULT_WEIGHTS="bset")
    (line,) = (line for line in server.lines() if "bset" in line["message"])
    assert line["severity"] == "WARNING" and "RNN_DEFAULT_WEIGHTS" in line["message"] and "get demo" in line["message"]
