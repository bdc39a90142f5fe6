"""Corpora in the dataset hub's layout: local folders, cached copies, and the hub itself within and out of reach."""

from __future__ import annotations

import time
from pathlib import Path

import corpora
import datasets
import numpy as np
import pytest
from conftest import WIKITEXT, needs_wikitext
from corpora import ROWS, words_of

from rnnlm.data import hub
from rnnlm.data.corpus import CorpusError, CorpusUnavailable, SplitStats, load_corpus, open_text
from rnnlm.data.text import EOS, UNK

CLOSED_PORT = "http://127.0.0.1:9"  # "discard": nothing listens there
HANG_S = 30.0  # far longer than anything here takes: it detects a hang
hub_folder = corpora.hub_folder  # a fixture


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give `datasets` a cache folder for this test only."""
    cache = tmp_path / "hub-cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    return cache


# ---- Local folders ---------------------------------------------------------------------------------------------------


def test_a_local_folder_in_the_hub_layout(hub_folder) -> None:
    found = load_corpus(f"{hub_folder(ROWS)}:wikitext-2-v1")
    assert found.tokenizer == "wikitext"
    assert words_of(found, "train") == "The king | The king who sat | He died | He dead |"
    assert words_of(found, "validation") == f"The {UNK} sat |"
    assert words_of(found, "test") == "He sat |"
    assert found.stats["test"] == SplitStats(3, 3, 0.0)


def test_other_configs_are_text_of_any_script(hub_folder) -> None:
    folder = hub_folder(ROWS)
    hub_folder({"train": ["The king, who sat.\nThe (old) king's crown.", "The end"]}, config="news", name=folder.name)
    found = load_corpus(f"{folder}:news")
    assert found.tokenizer == "unicode"
    assert words_of(found, "train") == "The king who sat | The old king's crown |"
    assert words_of(found, "validation") == f"The {UNK} |"  # there is no such split: the last tenth of the sentences
    assert found.test is None


def test_an_empty_validation_split_counts_as_none(hub_folder) -> None:
    found = load_corpus(f"{hub_folder({**ROWS, 'validation': ['']})}:wikitext-2-v1")
    assert words_of(found, "validation") == f"He {UNK} |"  # the last of the training sentences


def test_a_file_in_the_place_of_an_empty_split_must_hold_words(hub_folder, tmp_path: Path) -> None:
    spec = f"{hub_folder({**ROWS, 'validation': [''], 'test': ['1945 .']})}:wikitext-2-v1"
    assert load_corpus(spec).test is None
    (tmp_path / "own.txt").write_text("1945 .")
    with pytest.raises(CorpusError, match=f"the test split of corpus '{spec}' holds no words"):
        load_corpus(spec, test=str(tmp_path / "own.txt"))


def test_a_config_that_is_missing_lists_those_there_are(hub_folder) -> None:
    folder = hub_folder(ROWS)
    hub_folder(ROWS, config="news", name=folder.name)
    with pytest.raises(CorpusError, match=rf"no config 'wikitext-3' in '{folder}'; it has wikitext-2-v1, news$"):
        load_corpus(f"{folder}:wikitext-3")
    with pytest.raises(CorpusError, match=rf"add its config: {folder}:CONFIG, one of wikitext-2-v1, news$"):
        load_corpus(str(folder))


@pytest.mark.parametrize(
    ("rows", "column", "message"),
    [
        ({"test": ["a b ."]}, "text", "has no train split; it has test"),
        ({"train": ["a b ."]}, "body", "has no text column; it has body"),
        ({"train": ["", "1945 ."]}, "text", "holds no words in its training split"),
        ({"train": ["1945 ."], "validation": ["a b ."]}, "text", "holds no words in its training split"),
    ],
)
def test_a_data_set_of_another_shape(hub_folder, rows: dict, column: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        load_corpus(f"{hub_folder(rows, column=column)}:wikitext-2-v1")


def test_a_damaged_data_file(hub_folder) -> None:
    folder = hub_folder(ROWS)
    (folder / "wikitext-2-v1" / "train-00000-of-00001.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(CorpusError, match=r"cannot read corpus .*:wikitext-2-v1'") as caught:
        load_corpus(f"{folder}:wikitext-2-v1")
    assert "\n" not in str(caught.value)


def test_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"cannot read corpus|no config"):
        load_corpus(f"{tmp_path}:wikitext-2-v1")


def test_datasets_stays_quiet_and_is_left_as_it_was(hub_folder, capfd: pytest.CaptureFixture[str]) -> None:
    verbosity, disabled = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    load_corpus(f"{hub_folder(ROWS)}:wikitext-2-v1")
    assert capfd.readouterr() == ("", "")
    assert (datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()) == (verbosity, disabled)


@needs_wikitext
def test_wikitext_2_has_the_documented_counts() -> None:
    found = load_corpus(f"{WIKITEXT}:wikitext-2-v1")
    assert len(found.vocabulary) == 31_266
    assert len(found.train) == found.counts.sum() == 1_696_744
    assert len(found.validation) == 171_909
    assert found.test is not None and len(found.test) == 191_546
    assert found.vocabulary.unk is None  # the training split has all words of the other splits
    assert found.vocabulary.words[:3] == ("the", EOS, "of")
    assert (np.bincount(found.train) == found.counts).all()
    assert (np.diff(found.counts) <= 0).all()


# ---- The hub ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [*hub.NAMES, "owner/name:config"])
def test_out_of_reach_is_one_line_at_once(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", CLOSED_PORT)
    begun = time.monotonic()
    with pytest.raises(CorpusUnavailable) as caught:
        load_corpus(spec)
    assert time.monotonic() - begun < HANG_S
    message = str(caught.value)
    assert "\n" not in message
    for part in (repr(spec), CLOSED_PORT, "Connection refused", "--corpus demo", f"FOLDER:{spec.split(':')[-1]}"):
        assert part in message
    assert caught.value.exit_code == 2
    assert not datasets.config.HF_HUB_OFFLINE  # left as it was


@pytest.mark.parametrize("spec", [*hub.NAMES, "owner/name:config"])
def test_out_of_reach_an_evaluation_is_told_of_its_own_option(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", CLOSED_PORT)
    with pytest.raises(CorpusUnavailable, match=f"--evaluate demo.*--evaluate FOLDER:{spec.split(':')[-1]}") as caught:
        open_text(spec)
    assert "--corpus" not in str(caught.value)


def test_out_of_reach_a_cached_copy_is_used(
    hub_folder, own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = hub_folder(ROWS, name="wikitext")
    online = load_corpus(f"{folder}:wikitext-2-v1")
    # `datasets` caches what came from the hub under OWNER___NAME, and what came from a folder under its name.
    (own_cache / "wikitext").rename(own_cache / "Salesforce___wikitext")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", CLOSED_PORT)
    monkeypatch.chdir(folder.parent)
    offline = load_corpus("wikitext-2-v1")
    assert offline.train.tolist() == online.train.tolist()
    assert "using the cached copy of wikitext-2-v1" in caplog.text
    with pytest.raises(CorpusUnavailable, match="'wikitext-103-v1' is not cached here"):
        load_corpus("wikitext-103-v1")


def test_offline_sets_what_both_libraries_look_at() -> None:
    """Written for datasets 5.2.0 and huggingface_hub 2.4.0: both keep HF_HUB_OFFLINE in a module of constants."""
    import huggingface_hub

    places = (datasets.config, huggingface_hub.constants)
    with pytest.raises(KeyError), hub._offline(datasets):
        assert [place.HF_HUB_OFFLINE for place in places] == [True, True]
        with pytest.raises(Exception, match=r"(?i)offline"):  # neither uses the network
            huggingface_hub.HfApi().dataset_info("owner/name")
        with pytest.raises((OSError, ValueError), match=r"(?i)offline|cache"):
            datasets.load_dataset("owner/name")
        raise KeyError
    assert [place.HF_HUB_OFFLINE for place in places] == [False, False]  # also after an error


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "why_unreachable", lambda _: pytest.fail("it asked the network"))
    with pytest.raises(CorpusUnavailable, match="offline mode is set"):
        load_corpus("wikitext-2-v1")


def test_within_reach_the_hub_is_asked_for_the_right_thing(hub_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests have no hub, so this one checks what `datasets` is asked for."""
    loaded = datasets.load_dataset(str(hub_folder(ROWS)), "wikitext-2-v1")
    asked = []
    monkeypatch.setattr(hub, "why_unreachable", lambda _: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or loaded)
    assert load_corpus("wikitext-103-v1").tokenizer == "wikitext"
    assert load_corpus("owner/some.name-1:config").tokenizer == "unicode"
    assert asked == [("Salesforce/wikitext", "wikitext-103-v1"), ("owner/some.name-1", "config")]


def test_whatever_the_hub_answers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist\non the Hub")

    monkeypatch.setattr(hub, "why_unreachable", lambda _: None)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(CorpusError, match="DatasetNotFoundError: Dataset 'owner/name' doesn't exist on the Hub"):
        load_corpus("owner/name:config")


def test_a_folder_of_that_name_comes_before_the_hub(hub_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub_folder(ROWS, name="owner/name")
    monkeypatch.chdir(folder.parent.parent)
    assert len(load_corpus("owner/name:wikitext-2-v1").train) > 0
