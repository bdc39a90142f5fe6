"""What the tests of corpora share: text files, and folders in the dataset hub's layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rnnlm.data.corpus import Corpus
from rnnlm.data.text import EOS, TokenStream


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], str]:
    """Return a function that writes a text file and returns its path, as for --corpus."""

    def write(content: str | bytes, name: str = "text.txt") -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def tokenize(text: str, tokenizer: str) -> list[str]:
    """Return all tokens of a text."""
    stream = TokenStream(tokenizer)
    return stream.feed(text) + stream.close()


def words_of(found: Corpus, split: str) -> str:
    ids = getattr(found, split)
    return " ".join(found.vocabulary.words[i] for i in ids).replace(EOS, "|")


README = """---
configs:
{configs}---
# A tiny data set
"""
ROWS = {
    "train": ["", " = The king = \n", " The king , who <unk> sat . He died . \n", None, "He 's dead"],
    "validation": [" The queen sat . \n"],
    "test": [" He sat . \n", ""],
}


@pytest.fixture
def hub_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a folder in the hub's layout: parquet files, a README that names their splits."""

    def make(rows: dict[str, list], config: str = "wikitext-2-v1", column: str = "text", name: str = "tiny") -> Path:
        folder = tmp_path / name
        (folder / config).mkdir(parents=True)
        entry = f"- config_name: {config}\n  data_files:\n"
        for split, values in rows.items():
            pq.write_table(pa.table({column: values}), folder / config / f"{split}-00000-of-00001.parquet")
            entry += f"  - split: {split}\n    path: {config}/{split}-*\n"
        readme = folder / "README.md"
        before = readme.read_text().split("configs:\n")[1].split("---")[0] if readme.exists() else ""
        readme.write_text(README.format(configs=before + entry))
        return folder

    return make
