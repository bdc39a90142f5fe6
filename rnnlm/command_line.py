"""The command line that both models share: generate from a prompt, or score a text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from rnnlm import openmp, terminal
from rnnlm.arrays import MAX_THREADS
from rnnlm.data.text import EOS
from rnnlm.errors import ArgumentParser, UserError, output_lost, show_path
from rnnlm.language_model import LanguageModel, shown
from rnnlm.sampling import PromptError

Load = Callable[[argparse.Namespace], LanguageModel]


def main(
    program: str,
    load: Load,
    arguments: Sequence[str] | None = None,
    *,
    temperature: float,
    precisions: Sequence[str] = ("float32",),
) -> int:
    """Generate, or score, as the command line asks. Returns the exit code; an error is one line on stderr.

    program: as a user starts it.   load: makes the model from the options weights, threads and precision.
    temperature: the default.   precisions: the choices of --precision.
    """
    terminal.prepare()
    name = program.split()[0]
    try:
        options = _parse(program, arguments, temperature, precisions)
        if options.prompt is None or options.prompt == "-":
            options.prompt = _prompt_from_standard_input()
        model = load(options)
        unknown = _score(model, options) if options.score else _generate(model, options)
        sys.stdout.flush()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except (OSError, UnicodeError) as error:
        return output_lost(name, error)
    if unknown:
        print(f"not in the vocabulary: {', '.join(unknown)}", file=sys.stderr)
    return 0


def _parse(
    program: str, arguments: Sequence[str] | None, temperature: float, precisions: Sequence[str]
) -> argparse.Namespace:
    parser = ArgumentParser(prog=program, description="Generate from the weights of a model, or score a text.")
    parser.add_argument("weights", help="a weights file, such as weights/demo.safetensors")
    parser.add_argument(
        "prompt",
        nargs="?",
        help="the words to continue, or with --score the text to score; - or none: what comes from standard input",
    )
    parser.add_argument("--score", action="store_true", help="print the log-probability of each word, and perplexity")
    parser.add_argument("-n", "--max-tokens", type=int, default=50, help="generate at most this many (%(default)s)")
    parser.add_argument("--temperature", type=float, default=temperature, help="0 is greedy (%(default)s)")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k most probable tokens; 0: all")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the most probable that hold p; 1: all")
    parser.add_argument("--seed", type=int, help="the same seed gives the same text; default: a fresh one")
    parser.add_argument("--ignore-eos", action="store_true", help="continue after the end of the sentence")
    parser.add_argument("--precision", choices=precisions, default="float32", help="how Why is stored (%(default)s)")
    parser.add_argument("--threads", type=int, help="default: OMP_NUM_THREADS, or one for each processor")
    options = parser.parse_args(arguments)
    if options.threads is None:
        options.threads = openmp.default_threads()
    if not 1 <= options.threads <= MAX_THREADS:
        parser.error(f"--threads must be from 1 to {MAX_THREADS}, got {options.threads}")
    if options.prompt is None and (sys.stdin is None or sys.stdin.isatty()):
        parser.error("give a prompt, or send one to standard input")
    return options


def _prompt_from_standard_input() -> str:
    """Return what standard input holds. Bytes that are not UTF-8 are refused by the model."""
    if sys.stdin is None:
        raise PromptError("there is no standard input to read a prompt from: give one")
    data = sys.stdin.buffer.read()
    return data.decode("utf-8", "surrogateescape").removeprefix("\N{BYTE ORDER MARK}").rstrip("\r\n")


def _generate(model: LanguageModel, options: argparse.Namespace) -> tuple[str, ...]:
    generation = model.generate(
        options.prompt,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        ignore_eos=options.ignore_eos,
    )
    print(options.prompt, generation.text)
    print(f"{len(generation.tokens)} tokens, {generation.finish_reason}, seed {generation.seed}", file=sys.stderr)
    return generation.unknown


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
    perplexity = f"{score.perplexity:.2f}" if score.perplexity < 1e6 else shown(score.perplexity)
    print(f"perplexity {perplexity} over {len(score.tokens)} tokens")
    return score.unknown
