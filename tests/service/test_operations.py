"""Headers of every response, and metrics."""

from __future__ import annotations

from pathlib import Path

from serving import needs_library, save_tiny, serving
from starlette.testclient import TestClient

pytest_plugins = ("service_fixtures",)
pytestmark = needs_library


def test_every_response_has_an_id_and_security_headers(client: TestClient) -> None:
    for path in ("/", "/health", "/nowhere", "/docs"):
        headers = client.get(path).headers
        assert len(headers["x-request-id"]) == 32
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
    assert client.get("/health", headers={"x-request-id": "mine-7"}).headers["x-request-id"] == "mine-7"
    assert client.get("/health", headers={"x-request-id": "a b\n"}).headers["x-request-id"] != "a b\n"


def test_metrics(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    with serving(tmp_path) as client:
        client.post("/generate/c", json={"prompt": "waa", "max_tokens": 5, "ignore_eos": True})
        client.get("/made-up-7")
        client.get("/web/js/app.js")
        client.head("/web/nothing.js")
        client.request("SPURIOUS", "/score")
        text = client.get("/metrics").text
        for line in (
            'rnn_requests_total{method="POST",route="/generate/{backend}",status="200"} 1.0',
            'rnn_requests_total{method="GET",route="other",status="404"} 1.0',
            'rnn_requests_total{method="other",route="other",status="405"} 1.0',
            'rnn_requests_total{method="GET",route="/web/{path:path}",status="200"} 1.0',
            'rnn_requests_total{method="HEAD",route="/web/{path:path}",status="404"} 1.0',
            'rnn_tokens_total{backend="c"} 5.0',
            'rnn_prompt_tokens_total{backend="c"} 2.0',
            'rnn_time_to_first_token_seconds_count{backend="c"} 1.0',
            'rnn_time_between_tokens_seconds_count{backend="c"} 4.0',
            'rnn_sequences_waiting{backend="c"} 0.0',
            "rnn_requests_in_flight 1.0",
        ):
            assert line in text, line
        assert 'rnn_model_info{backend="c",sha256="' in text and "made-up" not in text
        assert "SPURIOUS" not in text
        assert "process_resident_memory_bytes" in text
