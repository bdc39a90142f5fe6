"""The OpenAPI document and its browser at /docs."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest
from conftest import make_checkpoint
from serving import needs_library, serving
from starlette.testclient import TestClient

from rnnlm import checkpoint

pytest_plugins = ("service_fixtures",)
pytestmark = needs_library


def test_the_docs_load_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page.text) + re.findall(r"url: '([^']*)'", page.text)
    assert len(addresses) == 4
    for address in addresses:
        assert client.get(f"/{address}".replace("//", "/")).status_code == 200, address
    policy = page.headers["content-security-policy"]
    assert "http" not in policy and "'self'" in policy
    script = re.search(r"<script>(.*?)</script>", page.text, re.DOTALL)
    assert script and base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode() in policy
    for name in ("redoc.standalone.js", "..%2f__init__.py", "nothing"):
        assert client.get(f"/docs/{name}").status_code == 404


def test_the_docs_can_be_missing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.routes.docs.find_spec", lambda name: None)
    assert "paths" in client.get("/docs").json()


def test_the_document_tells_of_every_error_as_it_is(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    names = document["components"]["schemas"]
    assert {
        "Problem",
        "OpenAIErrors",
        "TokenEvent",
        "GenerateEnd",
    } <= names.keys() and "HTTPValidationError" not in names
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            errors = {int(status): told["content"] for status, told in responses.items() if int(status) >= 400}
            assert {429, 500} <= errors.keys()
            if method == "post":
                assert {400, 401, 408, 413, 503} <= errors.keys()
            if path in ("/generate/{backend}", "/score", "/v1/completions"):
                assert {404, 501, 504} <= errors.keys()
            ours = not path.startswith("/v1/")
            assert 422 not in errors if not ours else 422 in errors or method == "get"
            kind, schema = ("application/problem+json", "Problem") if ours else ("application/json", "OpenAIErrors")
            for content in errors.values():
                assert content == {kind: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}, (path, method)


def test_openapi_examples_work(client: TestClient, tmp_path: Path) -> None:
    document = client.get("/openapi.json").json()
    source = make_checkpoint(vocab=20)
    words = (*source.vocabulary[:-4], "The", "prime", "minister", "said")
    checkpoint.save(tmp_path / "demo.safetensors", checkpoint.Checkpoint(source.weights, words, "plain", "c", {}, []))
    tried = 0
    with serving(tmp_path) as served:
        for path, methods in document["paths"].items():
            content = methods.get("post", {}).get("requestBody", {}).get("content", {})
            for example in content.get("application/json", {}).get("examples", {}).values():
                address = path.replace("{backend}", "c")
                assert served.post(address, json=example["value"]).status_code == 200, (path, example)
                tried += 1
    assert tried >= 5
