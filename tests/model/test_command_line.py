"""rnn.py's command line, as a user meets it."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, make_checkpoint
from running import refused

import rnn
from rnnlm import checkpoint, openmp
from rnnlm.checkpoint import CheckpointError
from rnnlm.data.text import EOS, UNK
from rnnlm.errors import counted
from rnnlm.language_model import Score, Token

PROGRAMS = {"c": ("rnn.py",), "torch": ("torch_rnn.py", "--generate")}


def rnn_command(
    *arguments: str, program: tuple[str, ...] = PROGRAMS["c"], standard_input: bytes | None = b"", **environment: str
) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, *program, *arguments],
        input=standard_input,
        capture_output=True,
        cwd=ROOT,
        env=os.environ | environment,
    )
    result.stdout, result.stderr = result.stdout.decode(), result.stderr.decode()
    return result


def test_generate_and_score_from_the_command_line(weights_file: Path) -> None:
    first = rnn_command(str(weights_file), "waa nonsense wab", "--seed", "3")
    assert (
        first.returncode == 0
        and first.stdout == rnn_command(str(weights_file), "waa nonsense wab", "--seed", "3").stdout
    )
    assert first.stdout.startswith("waa nonsense wab ") and "nonsense" in first.stderr and "seed 3" in first.stderr
    score = rnn_command(str(weights_file), "waa wab.", "--score")
    assert score.returncode == 0
    assert re.search(
        r"^waa +-\d+\.\d+\nwab +-\d+\.\d+\n<EOS> +-\d+\.\d+\nperplexity \d+\.\d+ over 3 tokens\n$", score.stdout
    )


def test_a_score_shows_the_words_as_they_were_written(tmp_path: Path) -> None:
    words = (EOS, UNK, *(f"w{letter}ß" for letter in "abcdefghijk"))
    source = replace(make_checkpoint(vocab=13), vocabulary=words, tokenizer="unicode+lowercase")
    checkpoint.save(tmp_path / "x.safetensors", source)
    score = rnn_command(str(tmp_path / "x.safetensors"), "WAß, nonsense 42\x1b Waß\nwbß.", "--score")
    lines = [re.split(" {2,}", line) for line in score.stdout.splitlines()]
    number = r"-\d+\.\d+"
    want = [
        ("WAß", number),
        (",", "dropped"),
        ("nonsense", number, "as <UNK>"),
        (r"'42\\x1b'", "dropped"),
        ("Waß", number),
    ]
    want += [("<EOS>", number), ("wbß", number), ("<EOS>", number)]
    for line, parts in zip(lines, want, strict=False):
        assert len(line) == len(parts) and all(map(re.fullmatch, parts, line)), line
    assert len(lines) == len(want) + 1 and lines[-1][0].endswith("over 6 tokens")


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_ctrl_c_keeps_what_was_generated(program: tuple[str, ...], weights_file: Path) -> None:
    options = (str(weights_file), "waa", "--seed", "3", "--ignore-eos", "--temperature", "1", "--threads", "1")
    endless = [sys.executable, *program, *options, "-n", "100000"]
    with subprocess.Popen(endless, cwd=ROOT, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        begun = process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=60)
    assert process.returncode == 130
    stopped = re.fullmatch(rf"{program[0]}: stopped after ([\d,]+) tokens?, seed 3\n", said.decode())
    assert stopped, said
    whole = rnn_command(*options, "-n", stopped[1].replace(",", ""), program=program)
    assert whole.returncode == 0 and begun + rest == whole.stdout.encode()


def test_each_word_is_written_as_it_comes(weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    stream = rnn.RNN.stream

    def watched(*arguments: Any, **options: Any) -> Iterator[Token]:
        for token in stream(*arguments, **options):
            seen.append((tmp_path / "output").read_text())
            yield token

    monkeypatch.setattr(rnn.RNN, "stream", watched)
    with (tmp_path / "output").open("w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert rnn.main([str(weights_file), "waa", "--seed", "3", "--ignore-eos", "-n", "9"]) == 0
    assert seen[0] == "waa " and len(set(seen)) == 9 and seen == sorted(seen, key=len)


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
@pytest.mark.parametrize("goes_on", [True, False])
def test_what_is_printed_is_the_generation(program: tuple[str, ...], goes_on: bool, weights_file: Path) -> None:
    """Sentence by sentence, also where a sentence is empty."""
    model = rnn.RNN.load(weights_file)
    want = model.generate("waa", max_tokens=80, seed=5, ignore_eos=goes_on)
    options = ("-n", "80", "--seed", "5", "--temperature", "1", *["--ignore-eos"] * goes_on)
    result = rnn_command(str(weights_file), "waa", *options, program=program)
    assert result.stdout == f"waa {want.text}\n" and "\n" in want.text
    assert result.stderr == f"{counted(len(want.tokens), 'token')}, {want.finish_reason}, seed 5\n"


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_the_prompt_may_come_from_standard_input(program: tuple[str, ...], weights_file: Path) -> None:
    options = ("-n", "7", "--temperature", "1", "--top-p", "0.9", "--seed", "3", "--ignore-eos", "--threads", "2")
    given = rnn_command(str(weights_file), "waa wab", *options, program=program)
    assert given.returncode == 0 and "7 tokens, length, seed 3" in given.stderr, given.stderr
    for prompt in ((), ("-",)):
        piped = rnn_command(str(weights_file), *prompt, *options, program=program, standard_input=b"waa wab\r\n")
        assert piped.stdout == given.stdout and piped.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals here")
def test_a_terminal_is_not_waited_for(weights_file: Path) -> None:
    """As --help says, a prompt is read from standard input if something is piped in."""
    reader, terminal = os.openpty()
    command = [sys.executable, "rnn.py", str(weights_file)]
    result = subprocess.run(command, stdin=terminal, cwd=ROOT, capture_output=True, text=True, timeout=60)
    os.close(reader)
    os.close(terminal)
    refused(result, 2, "give a prompt, or send one to standard input")
    shown = " ".join(rnn_command("--help").stdout.split())
    assert "-, or none in a pipe: read from standard input" in shown


def test_options_may_stand_anywhere(weights_file: Path) -> None:
    weights, seed = str(weights_file), ("--seed", "3", "--temperature", "1")
    given = rnn_command(weights, "waa wab", *seed)
    for words in ((weights, *seed, "waa wab"), (*seed, weights, "waa wab"), (weights, *seed, "--", "waa wab")):
        assert rnn_command(*words).stdout == given.stdout != "", words
    assert rnn_command(weights, *seed, "waa wab", program=PROGRAMS["torch"]).stdout == given.stdout
    score = rnn_command(weights, "waa wab", "--score")
    assert rnn_command(weights, "--score", "waa wab").stdout == score.stdout != ""
    assert rnn_command(weights, "--score", "-", standard_input=b"waa wab").stdout == score.stdout


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_prompt_is_quoted_and_comes_after_the_weights(program: tuple[str, ...], weights_file: Path) -> None:
    example = f'{" ".join(program)} WEIGHTS "The prime minister": --help lists the options'
    unquoted = rnn_command(str(weights_file), "--seed", "3", "waa", "wab", "wac", program=program)
    refused(unquoted, 2, f"unrecognized arguments: wab wac: a prompt of several words is quoted, as in {example}")
    forgotten = rnn_command("The 'prime", program=program)
    refused(forgotten, 2, f"""there is no file "The 'prime": the weights file comes first, as in {example}""")
    refused(rnn_command("none.safetensors", program=program, standard_input=b"waa"), 2, "train a model")
    refused(rnn_command(str(weights_file.with_suffix("")), program=program, standard_input=b"waa"), 2, "do you mean")


@pytest.mark.parametrize("before", [(), ("--score",), ("-n", "5")])
def test_a_prompt_may_begin_with_a_hyphen(before: tuple[str, ...], weights_file: Path) -> None:
    weights = str(weights_file)
    for words in ((weights, *before, "--", "-waa"), (*before, weights, "--", "-waa"), (*before, "--", weights, "-waa")):
        result = rnn_command(*words)
        assert result.returncode == 0 and "waa" in result.stdout, (words, result.stderr)


@pytest.mark.parametrize(
    "program",
    ["rnn.py", "main.py", "torch_rnn.py", "-m rnnlm.compare", "-m rnnlm.ensemble", "-m rnnlm.export", "-m service"],
)
def test_messages_begin_with_the_programs_name(program: str) -> None:
    done = subprocess.run(
        [sys.executable, *program.split(), "--nosuch"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stderr.startswith(f"{program.removeprefix('-m ')}: "), done.stderr
    assert done.stderr.endswith(": --help lists the options\n") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "given,meaning",
    [
        ("main.py --epoch 3", "--epochs"),
        ("main.py --learnin-rate=3", "--learning-rate"),
        ("-m rnnlm.compare x.jsonl --outt x.png", "--out"),
        ("-m service --por 80", "--port"),
        ("rnn.py x.safetensors --seeed 7 The", "--seed"),
        ("rnn.py x.safetensors The -seed 7", "--seed"),
        ("torch_rnn.py --generate x.safetensors The --temp 7", "--temperature"),
        ("rnn.py x.safetensors The --nothing-like-it", ""),
    ],
)
def test_a_misspelt_option_is_named(given: str, meaning: str) -> None:
    result = subprocess.run([sys.executable, *given.split()], cwd=ROOT, capture_output=True, text=True, timeout=120)
    refused(
        result, 2, "unrecognized arguments: ", f" (do you mean {meaning}?): --help lists the options" * bool(meaning)
    )
    assert ("do you mean" in result.stderr) == bool(meaning)


def test_counts_are_words_of_plain_english(weights_file: Path) -> None:
    one = rnn_command(str(weights_file), "waa", "-n", "1", "--ignore-eos", "--seed", "3")
    assert one.stderr == "1 token, length, seed 3\n"
    assert rnn_command(str(weights_file), "waa", "--score").stdout.endswith(" over 1 token\n")
    assert [counted(n, "word") for n in (0, 1, 2, 31_266)] == ["0 words", "1 word", "2 words", "31,266 words"]
    assert counted(2, "batch", "batches") == "2 batches"


def test_torch_is_greedy_and_c_samples_unless_told_otherwise(weights_file: Path) -> None:
    outputs = {
        name: {rnn_command(str(weights_file), "waa", "-n", "20", program=of).stdout for _ in range(3)}
        for name, of in PROGRAMS.items()
    }
    greedy = rnn_command(str(weights_file), "waa", "-n", "20", "--temperature", "0")
    assert outputs["torch"] == {greedy.stdout} and len(outputs["c"]) > 1


def test_standard_input_that_cannot_be_used(weights_file: Path) -> None:
    latin1 = rnn_command(str(weights_file), standard_input=b"waa w\xe4b")
    refused(latin1, 2, "standard input is not UTF-8 text: byte 0xe4 at offset 5; convert it, ... | iconv -f LATIN1")
    refused(rnn_command(str(weights_file), standard_input=b""), 2, "the prompt has no word")
    closed = f'exec "{sys.executable}" "{ROOT / "rnn.py"}" "{weights_file}" <&-'
    refused(subprocess.run(["bash", "-c", closed], capture_output=True, text=True), 2, "give a prompt")
    unreadable = closed.replace("<&-", f'0>"{weights_file.with_name("written")}"')
    refused(
        subprocess.run(["bash", "-c", unreadable], capture_output=True, text=True), 2, "standard input cannot be read"
    )


def test_the_threads_are_those_of_the_environment_unless_given(
    weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wish, threads in (("3", 3), ("5,2", 5), ("", openmp.processors())):
        monkeypatch.setenv("OMP_NUM_THREADS", wish)
        assert openmp.default_threads() == threads
    for wish in ("0", "many", "1025"):
        monkeypatch.setenv("OMP_NUM_THREADS", wish)
        refused(rnn_command(str(weights_file), "waa"), 2, "OMP_NUM_THREADS must be", repr(wish), "unset it")
        assert rnn_command(str(weights_file), "waa", "--threads", "1").returncode == 0


@pytest.mark.parametrize("prompt", ["", "  ", "1 2 3", "nonsense entirely"])
def test_prompts_that_cannot_be_used(prompt: str, weights_file: Path) -> None:
    refused(rnn_command(str(weights_file), prompt), 2, "prompt")


@pytest.mark.parametrize(
    "extra,word",
    [
        (["--max-tokens", "0"], "max_tokens"),
        (["--temperature", "-1"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--top-k", "-1"], "top_k"),
        (["--top-k", "2147483648"], "top_k"),
        (["--seed", "-1"], "seed"),
        (["--threads", "0"], "--threads must be from 1 to 1,024, got 0"),
        (["--threads", "1025"], "1,025"),
    ],
)
def test_generation_options_out_of_range(extra: list[str], word: str, weights_file: Path) -> None:
    refused(rnn_command(str(weights_file), "waa", *extra), 2, word)


@pytest.mark.parametrize("what", [("waa", "--score"), ("--evaluate", "text.txt")])
@pytest.mark.parametrize(
    "given",
    ["-n 50", "--temperature 0", "--top-k 0", "--top-p 1", "--seed 0", "--ignore-eos"],
)
def test_options_of_a_generation_are_refused_elsewhere(
    what: tuple[str, ...], given: str, weights_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where their value is the default, or 0."""
    with pytest.raises(SystemExit) as caught:
        rnn.main([str(weights_file), *what, *given.split()])
    option = given.split()[0].replace("-n", "--max-tokens")
    said = f"rnn.py: {option} is for generating: leave it out with {what[-1] if what[0] == 'waa' else what[0]}: "
    assert caught.value.code == 2 and capsys.readouterr().err.startswith(said)


def test_missing_and_damaged_weights(weights_file: Path, tmp_path: Path) -> None:
    refused(rnn_command(str(tmp_path / "none.safetensors"), "waa"), 2, "none.safetensors")
    weights_file.write_bytes(weights_file.read_bytes()[:-10])
    refused(rnn_command(str(weights_file), "waa"), 2, "tiny.safetensors", "for them: copy it again")


def test_a_folder_is_answered_with_the_weights_files_in_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r": is a folder, not a file$"):
        rnn.RNN.load(tmp_path)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.safetensors").touch()
    (tmp_path / "b.resume").touch()
    listed = ", ".join(str(tmp_path / f"{name}.safetensors") for name in ("a", "b", "c"))
    with pytest.raises(CheckpointError, match=f"is a folder, not a file: give one in it: {re.escape(listed)}$"):
        rnn.RNN.load(tmp_path)
    (tmp_path / "d.safetensors").touch()
    with pytest.raises(CheckpointError, match=rf"{re.escape(listed)}, \.\.\.$"):
        rnn.RNN.load(tmp_path)


def rnn_into(target: str, *arguments: str) -> tuple[int, str]:
    """rnn.py with its output going to `target`, a shell's way to write it. (exit code, what it said on stderr)."""
    shell = f'"{sys.executable}" "{ROOT / "rnn.py"}" "$@" {target}; exit ${{PIPESTATUS[0]}}'
    result = subprocess.run(["bash", "-c", shell, "rnn", *arguments], capture_output=True, text=True, cwd=ROOT)
    return result.returncode, result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_an_output_that_cannot_be_written(weights_file: Path) -> None:
    code, said = rnn_into("> /dev/full", str(weights_file), "waa")
    assert code == 1 and "rnn.py: the output cannot be written: No space left" in said and "Traceback" not in said
    code, said = rnn_into("| true", str(weights_file), "waa " * 20_000, "--score")
    assert code == 0 and "Traceback" not in said and "BrokenPipe" not in said


def test_a_prompt_that_is_not_text(weights_file: Path) -> None:
    result = subprocess.run(
        [sys.executable.encode(), bytes(ROOT / "rnn.py"), bytes(weights_file), b"waa \xff"],
        capture_output=True,
        cwd=ROOT,
    )
    assert result.returncode == 2 and result.stderr.startswith(b"rnn.py: the prompt is not valid Unicode")


def test_a_hopeless_score_has_a_perplexity(weights_file: Path) -> None:
    """Of a loss beyond what exp() takes."""
    assert math.isfinite(Score((Token(0, "a", -5000.0),), ()).perplexity)
