"""POST /v1/embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from serving import Server, needs_library
from starlette.testclient import TestClient

from rnnlm import checkpoint

pytestmark = needs_library
pytest_plugins = ("service_fixtures",)


def test_an_embedding_is_the_mean_of_the_words(client: TestClient, folder: Path) -> None:
    source = checkpoint.load(folder / "demo.safetensors")
    ids = [source.vocabulary.index(word) for word in ("waa", "wab", "waa")]
    for given in ("waa zebra, wab. waa", ids):
        reply = client.post("/v1/embeddings", json={"model": "torch/demo", "input": given}).json()
        (item,) = reply["data"]
        assert item["embedding"] == pytest.approx(source.weights.embeddings[ids].mean(axis=0).tolist(), abs=1e-6)
        assert (item["object"], item["index"], reply["object"]) == ("embedding", 0, "list")
        assert reply["usage"] == {"prompt_tokens": 3, "total_tokens": 3} and reply["model"] == "torch/demo"


def test_several_inputs_keep_their_order(client: TestClient) -> None:
    def vectors(given: Any) -> list[list[float]]:
        reply = client.post("/v1/embeddings", json={"model": "c/demo", "input": given, "dimensions": 9})
        return [item["embedding"] for item in reply.json()["data"]]

    assert vectors(["waa", "wab wac"]) == [*vectors("waa"), *vectors("wab wac")]
    assert vectors([[1], [2, 3]]) == vectors(["waa", "wab wac"])


def test_openais_client_decodes_them(folder: Path, tmp_path: Path) -> None:
    server = Server(folder, tmp_path / "log")
    try:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            plain = client.embeddings.create(model="c/demo", input="waa", encoding_format="float").data[0].embedding
            packed = client.embeddings.create(model="c/demo", input="waa").data[0].embedding  # asks for base64
            assert np.allclose(packed, plain, atol=1e-6) and len(plain) == 9
    finally:
        server.close()


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"input": "zebra"}, 400, "input cannot be used: no word of the input is in the vocabulary"),
        ({"input": ["waa", "..."]}, 400, "input item 2 of 2 cannot be used: the input has no word"),
        ({"input": [0]}, 400, "<EOS>"),
        ({"input": [99]}, 400, "got 99: send texts instead"),
        ({"input": [[1], [791, 10400]]}, 400, "got 791: send texts instead"),
        ({"input": [[791, 10400]]}, 400, "OpenAIEmbeddings does with check_embedding_ctx_length=False"),
        ({"input": {}}, 400, "input must be"),
        ({"dimensions": 8}, 400, "dimensions must be 9"),
        ({"encoding_format": "int8"}, 400, "encoding_format must be"),
        ({"model": "c/nosuch"}, 404, "nosuch"),
        ({"model": "text-embedding-3-small"}, 404, "/v1/models"),
    ],
)
def test_what_cannot_be_embedded(client: TestClient, change: dict[str, Any], status: int, says: str) -> None:
    response = client.post("/v1/embeddings", json={"model": "c/demo", "input": "waa", **change})
    assert response.status_code == status and says in response.json()["error"]["message"]
