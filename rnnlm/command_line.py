"""The command line that both models share: generate from a prompt, score a sentence, evaluate a text."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rnnlm import openmp, signals, terminal
from rnnlm.arrays import MAX_THREADS
from rnnlm.container import SUFFIX
from rnnlm.data.text import EOS, TOKENIZERS
from rnnlm.errors import ArgumentParser, Interrupted, UserError, counted, exit_code_of, reason, shortened, show_path
from rnnlm.language_model import LanguageModel, check_seed, shown
from rnnlm.sampling import PromptError

if TYPE_CHECKING:
    from rnnlm.evaluation import Evaluation

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_OF_GENERATION = ("max_tokens", "temperature", "top_k", "top_p", "seed", "ignore_eos")  # of `LanguageModel.stream`

Load = Callable[[argparse.Namespace], LanguageModel]


def main(
    program: str,
    load: Load,
    arguments: Sequence[str] | None = None,
    *,
    temperature: float,
    precisions: Sequence[str] = ("float32",),
) -> int:
    """Generate, score or evaluate, as the command line asks. Returns the exit code; an error is one line on stderr.

    program: as a user starts it.   load: makes the model from the options weights, threads and precision.
    temperature: the default.   precisions: the choices of --precision.
    """
    terminal.prepare()

    def work() -> None:
        options = _parse(program, arguments, temperature, precisions)
        if options.evaluate is None and options.prompt in (None, "-"):
            options.prompt = _prompt_from_standard_input()
        model = load(options)
        if options.evaluate is not None:
            unknown = _evaluate(model, options)
        else:
            unknown = _score(model, options) if options.score else _generate(model, options)
        sys.stdout.flush()
        if unknown:
            print(f"not in the vocabulary: {', '.join(map(shortened, unknown))}", file=sys.stderr)

    return exit_code_of(program, work)


def _parse(
    program: str, arguments: Sequence[str] | None, temperature: float, precisions: Sequence[str]
) -> argparse.Namespace:
    example = f'{program} WEIGHTS "The prime minister"'
    parser = ArgumentParser(
        prog=program,
        description="Generate from the weights of a model, or score a text with them.",
        extra=f"a prompt of several words is quoted, as in {example}",
    )
    parser.add_argument("weights", help="a weights file, such as weights/demo.safetensors")
    parser.add_argument(
        "prompt",
        nargs="?",
        help="the words to continue, or with --score the text to score; -, or none in a pipe: read from standard input",
    )
    parser.add_argument("--score", action="store_true", help="print the log-probability of each word, and perplexity")
    parser.add_argument(
        "--evaluate",
        metavar="TEXT",
        help="print the perplexity of a whole text: a file, - for standard input, or any corpus that training takes",
    )
    parser.add_argument("--per-line", action="store_true", help="with --evaluate: a JSON object for each line of it")
    parser.add_argument("--split", choices=SPLITS, help="with --evaluate: of a corpus that has several (test)")
    parser.add_argument(
        "--tokenizer",
        choices=TOKENIZERS,
        help="with --evaluate: how the text is read; default: as a prompt; WikiText: as the training text",
    )
    parser.add_argument("-n", "--max-tokens", type=int, help="generate at most this many (50)")
    parser.add_argument("--temperature", type=float, help=f"0 is greedy ({temperature:g})")
    parser.add_argument("--top-k", type=int, help="draw from the k most probable tokens; 0: all")
    parser.add_argument("--top-p", type=float, help="draw from the most probable that hold p; 1: all")
    parser.add_argument("--seed", type=int, help="the same seed gives the same text; default: a fresh one")
    parser.add_argument(
        "--ignore-eos", action="store_true", default=None, help="continue after the end of the sentence"
    )
    parser.add_argument("--precision", choices=precisions, default="float32", help="how Why is stored (%(default)s)")
    parser.add_argument("--threads", type=int, help="default: OMP_NUM_THREADS, or one for each processor")
    options = parser.parse_args(arguments)
    if options.threads is None:
        options.threads = openmp.default_threads()
    if not 1 <= options.threads <= MAX_THREADS:
        parser.error(f"--threads must be from 1 to {MAX_THREADS:,}, got {options.threads:,}")
    if options.evaluate is None:
        for name in ("per_line", "split", "tokenizer"):
            if getattr(options, name):
                parser.error(f"{_option(name)} is for --evaluate TEXT")
    elif options.prompt is not None or options.score:
        what = "--score" if options.score else f"the prompt {options.prompt!r}"
        parser.error(f"--evaluate reads its own text, {options.evaluate!r}: leave out {what}")
    elif options.evaluate == "":
        parser.error("--evaluate must name a text, got ''")
    for name in _for_generation(options):
        if options.score or options.evaluate is not None:
            what = "--score" if options.score else "--evaluate"
            parser.error(f"{_option(name)} is for generating: leave it out with {what}")
    if options.evaluate is None and options.prompt is None and _looks_like_a_prompt(options.weights):
        parser.error(f"there is no file {options.weights!r}: the weights file comes first, as in {example}")
    if options.evaluate is None and options.prompt is None and (sys.stdin is None or sys.stdin.isatty()):
        parser.error("give a prompt, or send one to standard input")
    return options


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _for_generation(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a generation that the command line names; the others have the model's own defaults."""
    return {name: value for name in _OF_GENERATION if (value := getattr(options, name)) is not None}


def _looks_like_a_prompt(weights: str) -> bool:
    """Return whether what stands in the place of the weights file names none, nor one that is missing."""
    return not weights.endswith(SUFFIX) and not any(map(os.path.exists, (weights, weights + SUFFIX)))


def _evaluate(model: LanguageModel, options: argparse.Namespace) -> tuple[str, ...]:
    from rnnlm import evaluation  # not needed to generate, nor what it takes to read a corpus
    from rnnlm.data import corpus

    # A bar would be drawn over the lines, if these go to the terminal too.
    level = logging.WARNING if options.per_line and sys.stdout.isatty() else logging.INFO
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    vocabulary = model.vocabulary
    try:
        text = corpus.open_text(options.evaluate, options.split, keep_lines=options.per_line)
        for note in text.notes:
            log.info(note)
        tokenizer = options.tokenizer or (vocabulary.corpus_tokenizer if text.is_tokenized else vocabulary.tokenizer)
        if options.per_line:
            whole = evaluation.Evaluation()
            for number, line in enumerate(evaluation.evaluate_lines(model, text.pieces, tokenizer), start=1):
                print(json.dumps({"line": number} | _as_dict(line)))
                whole += line
        else:
            whole = evaluation.evaluate(model, text.pieces, tokenizer)
    except ImportError as error:
        raise UserError(
            f"{options.evaluate!r} cannot be read without the package {error.name}: pip install {error.name}"
        ) from error
    name = "standard input" if options.evaluate == "-" else show_path(options.evaluate)
    if not whole.words:
        problem = "has no word that the model knows" if whole.unknown or whole.dropped else "is empty"
        raise UserError(f"{name} {problem}: use another text")
    name += f", {text.split} split" if text.split else ""
    for line in _report(whole, f"{name}, tokenizer {tokenizer}", vocabulary.unk is not None):
        print(line, file=sys.stderr if options.per_line else sys.stdout)
    return ()


def _as_dict(found: Evaluation) -> dict[str, Any]:
    means = (found.loss, found.perplexity, found.bits) if found.tokens else (None, None, None)
    return {
        **{"tokens": found.tokens, "unknown": found.unknown, "dropped": found.dropped, "nats": found.nats},
        **dict(zip(("nats_per_token", "perplexity", "bits_per_word"), means, strict=True)),
    }


def _report(found: Evaluation, what: str, has_unk: bool) -> Iterator[str]:
    """Yield the lines about a text for people."""
    read = "read as <UNK>" if has_unk else "left out"
    yield what
    yield f"tokens          {found.tokens:,}, of which {found.words:,} are words, the others ends of sentences"
    yield f"unknown words   {found.unknown:,}, {read}"
    yield f"dropped words   {found.dropped:,}"
    yield f"nats per token  {found.loss:.4f}"
    yield f"perplexity      {shown(found.perplexity, 2)}"
    yield f"bits per word   {found.bits:.4f}"


def _prompt_from_standard_input() -> str:
    """Return what standard input holds. Raises PromptError (closed, unreadable, not UTF-8)."""
    if sys.stdin is None:
        raise PromptError("there is no standard input to read a prompt from: give one")
    try:
        text = sys.stdin.buffer.read().decode()
    except OSError as error:
        raise PromptError(f"standard input cannot be read: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise PromptError(
            f"standard input is not UTF-8 text: byte {error.object[error.start]:#04x} at offset {error.start:,}; "
            "convert it, ... | iconv -f LATIN1 -t UTF-8 | ..., before it comes here; if it is in another encoding, "
            "name that instead (iconv -l lists them)"
        ) from error
    return text.removeprefix("\N{BYTE ORDER MARK}").rstrip("\r\n")


def _generate(model: LanguageModel, options: argparse.Namespace) -> tuple[str, ...]:
    seed = check_seed(options.seed)
    _, unknown = model.encode(options.prompt)
    tokens = model.stream(options.prompt, **_for_generation(options) | {"seed": seed})
    count, piece = 0, ""
    with signals.flag_of([signal.SIGINT], then=signal.SIG_DFL) as interrupted:
        print(options.prompt, end=" ", flush=True)
        for piece in model.vocabulary.decode_stream(token.id for token in tokens):
            print(piece, end="", flush=True)
            count += 1
            if interrupted():
                break
        print(flush=True)
        if interrupted():
            raise Interrupted(f"stopped after {counted(count, 'token')}, seed {seed}")
    finish_reason = "eos" if piece == "\n" and not options.ignore_eos else "length"
    print(f"{counted(count, 'token')}, {finish_reason}, seed {seed}", file=sys.stderr)
    return unknown


def _score(model: LanguageModel, options: argparse.Namespace) -> tuple[str, ...]:
    score = model.score(options.prompt)
    tokens = iter(score.tokens)
    written = [EOS if span.word == EOS else show_path(options.prompt[span.start : span.end]) for span in score.spans]
    width = max(map(len, written))
    for text, span in zip(written, score.spans, strict=True):
        if span.id is None:
            print(f"{text:<{width}}  {'dropped' if span.kind == 'dropped' else 'not in the vocabulary'}")
        else:
            print(f"{text:<{width}}  {next(tokens).logprob:9.4f}{'  as <UNK>' if span.kind == 'unknown' else ''}")
    print(f"perplexity {shown(score.perplexity, 2)} over {counted(len(score.tokens), 'token')}")
    return score.unknown
