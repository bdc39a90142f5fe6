"""Tables of the documents, as Markdown: each from the first line and the rows of its results file (figures.py)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rnnlm.errors import counted

Row = dict[str, Any]


def code(text: str) -> str:
    return f"```\n{text.rstrip()}\n```\n"


def paragraph(*sentences: str) -> str:
    return textwrap.fill(" ".join(filter(None, sentences)), 127, break_long_words=False, break_on_hyphens=False) + "\n"


def markdown(columns: Mapping[str, Sequence[str]]) -> str:
    """Return a table of columns, by their headings; those without a cell are left out."""
    shown = {heading: cells for heading, cells in columns.items() if any(cells)}
    lines = [tuple(shown), ("---",) * len(shown), *zip(*shown.values(), strict=True)]
    return "".join("".join(f"| {cell} " if cell.strip() else "| " for cell in line) + "|\n" for line in lines)


def cell(row: Row, key: str, form: str = "") -> str:
    """Return a row's number, formatted; nothing where it has none."""
    return format(row[key], form) if row.get(key) is not None else ""


# ---- bench.py --------------------------------------------------------------------------------------------------------

ENGINES = {"c": "C", "bfloat16": "C bf16", "torch": "PyTorch", "medium": "medium", "compile": "compiled"}


class Comparison(NamedTuple):
    """What bench.py measures in one run, and shows in one table.

    engines: whose speed.  ratios: pairs of engines, of which the first is faster by so much.  memory: whose peak.
    reaches: whether C's GFLOP/s are shown.
    """

    engines: tuple[str, ...]
    ratios: tuple[tuple[str, str], ...]
    memory: tuple[str, ...]
    reaches: bool = True


COMPARISONS = {
    "bench": Comparison(("c", "torch", "compile"), (("c", "torch"), ("c", "compile")), ("c", "torch")),
    "bfloat16": Comparison(
        ("c", "bfloat16", "torch", "medium"),
        (("bfloat16", "torch"), ("bfloat16", "medium"), ("bfloat16", "c")),
        ("c", "bfloat16"),
        reaches=False,
    ),
}


def ratio_key(ours: str, theirs: str) -> str:
    return f"ratio_to_{theirs}" if ours == "c" else f"{ours}_ratio_to_{theirs}"


def bench_columns(comparison: Comparison) -> Iterator[tuple[str, str, str, int, str]]:
    """Yield each column: what it is about, its heading, its key in a row, its width, its format."""
    for engine in comparison.engines:
        yield "tokens per second", ENGINES[engine], f"{engine}_tokens_per_second", 9, ",.0f"
    for ours, theirs in comparison.ratios:
        yield f"{ENGINES[ours]} is faster by", ENGINES[theirs], ratio_key(ours, theirs), 9, ".2f"
    if comparison.reaches:
        yield "C reaches", "GFLOP/s", "c_gflops", 9, ".0f"
        yield "C reaches", "of peak", "of_peak", 8, ".0%"
    for engine in comparison.memory:
        yield "peak memory, MB", ENGINES[engine], f"{engine}_megabytes", 9, ",.0f"


def bench_head(first: Row, comparison: Comparison) -> str:
    """Return the lines above a table of bench.py: what the machine can do at most, and the headings."""
    limits, columns = first["limits"], list(bench_columns(comparison))
    known = (
        ("float32", "{:.0f} GFLOP/s of multiply-adds"),
        ("bfloat16", "{:,.0f} of VDPBF16PS"),
        ("tiles", "{:,.0f} of AMX tiles"),
        ("exponentials", "{:.1f} G exponentials/s"),
        ("copy", "{:.1f} GB/s of copying"),
    )
    most = ", ".join(form.format(limits[name]) for name, form in known if name in limits)
    groups = dict.fromkeys(group for group, *_ in columns)
    wide = {name: sum(width for group, _, _, width, _ in columns if group == name) for name in groups}
    return (
        (f"{first['threads']} threads at most: {most}\n" if most else "")
        + f"{'':39}{''.join(f'{name:>{width}}' for name, width in wide.items())}\n"
        + f"{'':39}{''.join(f'{heading:>{width}}' for _, heading, _, width, _ in columns)}"
    )


def bench_line(first: Row, comparison: Comparison, row: Row) -> str:
    """Return a line of the table, "-" for what was not measured."""
    if "c_gflops" in row and row["threads"] == first["threads"]:
        row = row | {"of_peak": row["c_gflops"] / first["limits"]["float32"]}
    cells = (f"{cell(row, key, form) or '-':>{width}}" for _, _, key, width, form in bench_columns(comparison))
    return f"{row['group']:<17}{row['case']:<22}{''.join(cells)}"


def compared(name: str, first: Row, rows: list[Row]) -> str:
    lines = [bench_head(first, COMPARISONS[name]), *(bench_line(first, COMPARISONS[name], row) for row in rows)]
    return code("\n".join(lines))


def bfloat16(first: Row, rows: list[Row]) -> str:
    return compared("bfloat16", first, rows)


def amx(first: Row, rows: list[Row]) -> str:
    return compared("bfloat16", first, rows)


def bench(first: Row, rows: list[Row]) -> str:
    rates = {row["case"]: row["c_tokens_per_second"] for row in rows if row["group"] == "generate"}
    factor = rates["16 sequences"] / rates["1 sequence"]
    together = f"16 sequences that C generates together produce {factor:.1f} times the tokens of one."
    return compared("bench", first, rows) + "\n" + paragraph(together)


def speed(first: Row, rows: list[Row]) -> str:
    """Return the table of the README: six rows of bench.py."""
    chosen = {
        ("train", "32 x 35"): "train, 32 batch rows x 35 steps",
        ("train", "1 x 5000"): "train, one sequence of 5,000",
        ("train V=200k", "32 x 35"): "train, 200,000 words, 32 x 35",
        ("generate", "1 sequence"): "generate, 1 sequence",
        ("generate", "16 sequences"): "generate, 16 sequences",
        ("generate", "1 sequence, bfloat16"): "generate, 1 sequence, bfloat16 copy of `Why`",
    }
    found = {(row["group"], row["case"]): row for row in rows}
    picked = [found[case] for case in chosen]
    columns = {
        " ": list(chosen.values()),
        "C": [cell(row, "c_tokens_per_second", ",.0f") for row in picked],
        "PyTorch": [cell(row, "torch_tokens_per_second", ",.0f") for row in picked],
        "C is faster by": [cell(row, "ratio_to_torch", ".1f") for row in picked],
    }
    return markdown(columns)


# ---- steps.py --------------------------------------------------------------------------------------------------------


def steps(first: Row, rows: list[Row]) -> str:
    rows = [row for row in rows if row["task"] == "train"]
    faster = {"c": "C is faster by", "bfloat16": "C bfloat16 is faster by"}
    columns = {"step": [row["step"] for row in rows]}
    columns |= {name: [cell(row, f"{engine}_ms", ",.1f") for row in rows] for engine, name in STEP_ENGINES.items()}
    columns |= {name: [f"{row['torch_ms'] / row[f'{ours}_ms']:.1f}" for row in rows] for ours, name in faster.items()}
    return markdown(columns)


STEP_ENGINES = {"c": "C", "bfloat16": "C bfloat16", "torch": "PyTorch"}


def generation(first: Row, rows: list[Row]) -> str:
    rows = [row for row in rows if row["task"] == "generate"]
    columns = {"sequences": [cell(row, "sequences") for row in rows]}
    columns |= {name: [cell(row, name, ",.0f") for row in rows] for name in ("float32", "bfloat16", "int8")}
    return markdown(columns)


def limits(first: Row, rows: list[Row]) -> str:
    known = {
        "float32": ("multiply-adds in float32", "{:.0f} GFLOP/s"),
        "bfloat16": ("VDPBF16PS", "{:.0f} GFLOP/s"),
        "tiles": ("AMX tiles", "{:,.0f} GFLOP/s"),
        "exponentials": ("exponentials, those of `csrc/vector.h`, in registers", "{:.1f} x 10^9 a second"),
        "copy": ("`memcpy`, each byte counted twice", "{:.0f} GB/s"),
    }
    found = {name: form.format(first["limits"][key]) for key, (name, form) in known.items() if key in first["limits"]}
    return markdown({" ": list(found), "at most": list(found.values())})


# ---- gpu.py ----------------------------------------------------------------------------------------------------------

GPU_PRECISIONS = ("float32", "tf32", "bfloat16")
GPU_COLUMNS = (  # what it is about, heading, key in a row, width, format, scale
    ("tokens per second", "plain", "plain_tokens_per_second", 10, ",.0f", 1.0),
    ("tokens per second", "ours", "tokens_per_second", 11, ",.0f", 1.0),
    *(
        ("milliseconds of a step", heading, f"{part}_seconds", 8, ".3f", 1e3)
        for heading, part in (
            ("whole", "step"),
            ("hidden", "hidden_layer"),
            ("output", "output_layer"),
            ("update", "update"),
        )
    ),
    ("floor, ms", "operat.", "floor_arithmetic_seconds", 8, ".3f", 1e3),
    ("floor, ms", "bytes", "floor_memory_seconds", 7, ".3f", 1e3),
    ("memory", "MB", "megabytes", 7, ",.0f", 1.0),
)


def gpu_head(first: Row) -> str:
    top = first["limits"]
    rates = ", ".join(f"{top[precision] / 1e12:.0f} TFLOP/s in {precision}" for precision in GPU_PRECISIONS)
    groups = dict.fromkeys(group for group, *_ in GPU_COLUMNS)
    wide = {name: sum(width for group, _, _, width, *_ in GPU_COLUMNS if group == name) for name in groups}
    return (
        f"at most: {rates}; {top['copy'] / 1e12:.2f} TB/s of copying\n"
        f"{'':39}{''.join(f'{name:>{width}}' for name, width in wide.items())}\n"
        f"{'':39}{''.join(f'{heading:>{width}}' for _, heading, _, width, *_ in GPU_COLUMNS)}"
    )


def gpu_line(row: Row) -> str:
    cells = (
        f"{format(row[key] * scale, form) if row.get(key) is not None else '-':>{width}}"
        for _, _, key, width, form, scale in GPU_COLUMNS
    )
    return f"{row['case']:<30}{row['precision']:<9}{''.join(cells)}"


def gpu(first: Row, rows: list[Row]) -> str:
    return code("\n".join([gpu_head(first), *map(gpu_line, rows)]))


# ---- load.py ---------------------------------------------------------------------------------------------------------

LOAD_HEAD = "system | clients | requests/s | tokens/s | first token p50 / p99 ms | token p50 / p99 ms"


def load_start(start: Row) -> str:
    return (
        f"start to first C token: {start['cpu_seconds']} s of processor time; memory: {start['anonymous_mb']} MB of "
        f"its own, {start['mapped_mb']} MB of mapped files (the weights take {start['weights_mb']} MB)"
    )


def load_line(row: Row) -> str:
    refused = f" | {row['refused']} refused" if row["refused"] else ""
    return (
        f"{row['system']:6} | {row['clients']:7} | "
        f"{row['requests_per_second']:10.1f} | {row['tokens_per_second']:8,} | "
        f"{row['first_token_p50_ms']:9.2f} / {row['first_token_p99_ms']:9.2f} | "
        f"{row['token_p50_ms']:7.2f} / {row['token_p99_ms']:7.2f}{refused}"
    )


def load_end(rows: list[Row]) -> str:
    """Return what the rows of one system come to."""
    best = max(row["tokens_per_second"] for row in rows)
    enough = next(row["clients"] for row in rows if row["tokens_per_second"] >= 0.9 * best)
    return f"{rows[0]['system']}: {best:,} tokens/s; it saturates (90% of that) at {counted(enough, 'client')}"


def load(first: Row, rows: list[Row]) -> str:
    text = f"{load_start(first['start'])}\n\n{LOAD_HEAD}\n"
    for system in dict.fromkeys(row["system"] for row in rows):
        ours = [row for row in rows if row["system"] == system]
        text += "".join(load_line(row) + "\n" for row in ours) + load_end(ours) + "\n\n"
    rates = {(row["system"], row["clients"]): row["tokens_per_second"] for row in rows}
    of_one, of_plain = rates["c", 32] / rates["c", 1], rates["c", 32] / rates["plain", 32]
    return f"{code(text)}\n" + paragraph(
        f"32 clients of the C model together get {of_one:.1f} times the tokens/s of one client,",
        f"and {of_plain:.0f} times those of 32 clients of `plain`.",
    )


# ---- small.py --------------------------------------------------------------------------------------------------------


def small_lines(row: Row) -> str:
    return "".join(f"{key:24} {value}\n" for key, value in row.items() if key not in ("measured", "processor"))


def small(first: Row, rows: list[Row]) -> str:
    return code("\n".join(map(small_lines, rows)))


# ---- large_corpus.py -------------------------------------------------------------------------------------------------


def large_corpus(first: Row, rows: list[Row]) -> str:
    return markdown(
        {
            " ": [row["start"] for row in rows],
            "tokens read after": [f"{row['tokens_seconds']:.0f} s" for row in rows],
            "processor time until the first step": [f"{row['processor_seconds']:.0f} s" for row in rows],
            "peak memory": [f"{row['peak_mb']:,} MB" for row in rows],
        }
    )


# ---- results.py ------------------------------------------------------------------------------------------------------


def bold(cells: list[str]) -> list[str]:
    """Return the cells with the lowest number in bold."""
    numbers = [float(cell.replace(",", "")) for cell in cells if cell]
    lowest = min(numbers, default=0.0)
    return [f"**{cell}**" if cell and float(cell.replace(",", "")) == lowest else cell for cell in cells]


def results(first: Row, rows: list[Row]) -> str:
    return markdown(
        {
            "model": [row["model"] for row in rows],
            "hidden units": [cell(row, "hidden") for row in rows],
            "epochs": [cell(row, "epochs") for row in rows],
            "minutes of training": [cell(row, "minutes") for row in rows],
            "processor minutes": [cell(row, "processor_minutes", ".1f") for row in rows],
            "memory": [cell(row, "megabytes", ",.0f") and f"{row['megabytes']:,.0f} MB" for row in rows],
            "validation perplexity": bold([cell(row, "validation", ",.1f") for row in rows]),
            "test": bold([cell(row, "test", ",.1f") for row in rows]),
        }
    )


def perplexities(first: Row, rows: list[Row]) -> str:
    """Return the table of the README."""
    return markdown(
        {
            "model": [row["model"] for row in rows],
            "hidden units": [cell(row, "hidden") for row in rows],
            "minutes of training": [cell(row, "minutes") for row in rows],
            "processor minutes": [cell(row, "processor_minutes", ".1f") for row in rows],
            "validation": bold([cell(row, "validation", ",.1f") for row in rows]),
            "test": bold([cell(row, "test", ",.1f") for row in rows]),
        }
    )


# ---- precision.py ----------------------------------------------------------------------------------------------------

PRECISION_HEAD = f"{'precision':<10} {'test perplexity':>16} {'change':>9} {'tokens/s of one sequence':>24}"


def precision_line(row: Row, exact: float) -> str:
    reached = row["test_perplexity"]
    return f"{row['precision']:<10} {reached:>16.3f} {reached / exact - 1:>9.3%} {row['tokens_per_second']:>24,.0f}"


def precision(first: Row, rows: list[Row]) -> str:
    lines = (precision_line(row, rows[0]["test_perplexity"]) for row in rows)
    return code("\n".join([PRECISION_HEAD, *lines]))


# ---- scaling.py ------------------------------------------------------------------------------------------------------


def kind(row: Row) -> str:
    """Return which step a row of scaling.py is about."""
    return {"c": "C", "torch": "torch"}[row["backend"]] + (f", {row['sampled']:,} sampled" if row["sampled"] else "")


IDLE = 1.0  # the load of a machine that is fit to be measured


def disturbed(first: Row) -> str:
    """Return a sentence if other programs ran during the measurement, else nothing."""
    return (
        f"Other programs ran, the load was {first['load']:g}: the times are too long." if first["load"] > IDLE else ""
    )


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.{0 if seconds >= 0.02 else 1}f} ms"


def scaling(first: Row, rows: list[Row]) -> str:
    """Return the steps on one machine."""
    rows = [row for row in rows if row["on"] == "one"]
    tokens = first["tokens"]
    rows.sort(key=lambda row: (row["backend"], row["sampled"]))
    table = markdown(
        {
            "a step of": [kind(row) for row in rows],
            "processes x threads": [f"{row['processes']} x {row['threads']}" for row in rows],
            "exchange": [row["exchange"] if row["processes"] > 1 else "" for row in rows],
            "time": [milliseconds(row["step"]) for row in rows],
            "tokens/s": [f"{tokens / row['step']:,.0f}" for row in rows],
            "processor time, process 0": [milliseconds(row["cpu"]) for row in rows],
            "a process sends": [f"{row['sent'] / 1e6:.2f} MB" if row["sent"] else "" for row in rows],
        }
    )
    return table + (f"\n{paragraph(disturbed(first))}" if disturbed(first) else "")


def cable(first: Row, rows: list[Row]) -> str:
    """Return the steps of two machines, measured and as the fitted model has them, and how good the fit is."""
    if disturbed(first):
        return paragraph(disturbed(first), "No model is fitted to them.")
    fits = {row["exchange"]: row for row in rows if row["on"] == "fit"}
    rows = [row for row in rows if row["on"] == "cable"]
    groups = list(dict.fromkeys((kind(row), row["exchange"]) for row in rows))
    links = list(dict.fromkeys((row["gigabits"], row["us"]) for row in rows))
    found = {(kind(row), row["exchange"], row["gigabits"], row["us"]): row for row in rows}
    columns = {"a step of": [name for name, _ in groups], "exchange": [exchange for _, exchange in groups]}
    for gigabits, us in links:
        cells = [found[(*group, gigabits, us)] for group in groups]
        columns[f"{gigabits} Gb/s, {us / 1e3:g} ms"] = [
            f"{milliseconds(row['step'])} ({milliseconds(row['model'])})" for row in cells
        ]
    errors = sorted(abs(row["model"] / row["step"] - 1) for row in rows)
    terms = (
        f"With {name}, k = {row['k']:.1f} latencies and s = {row['s']:.2f} times the bytes."
        for name, row in fits.items()
    )
    return (
        markdown(columns)
        + "\n"
        + paragraph(
            *terms,
            f"The model misses half of the steps by less than {errors[len(errors) // 2]:.0%}, and none by more than "
            f"{errors[-1]:.0%}.",
        )
    )


def machines(first: Row, rows: list[Row]) -> str:
    """Return what the fitted model gives for more machines at 0.1 ms."""
    if disturbed(first):
        return paragraph(disturbed(first), "Nothing is computed from them.")
    rows = [row for row in rows if row["on"] == "computed" and row["us"] == 100 and row["machines"] > 1]
    tokens = first["tokens"]
    groups = list(dict.fromkeys((kind(row), row["exchange"], row["machines"]) for row in rows))
    found = {(kind(row), row["exchange"], row["machines"], row["gigabits"]): row for row in rows}
    columns = {
        "a step of": [name for name, _, _ in groups],
        "exchange": [exchange for _, exchange, _ in groups],
        "machines": [str(count) for _, _, count in groups],
    }
    for gigabits in dict.fromkeys(row["gigabits"] for row in rows):
        cells = [found[(*group, gigabits)] for group in groups]
        columns[f"{gigabits} Gb/s: a step"] = [milliseconds(row["step"]) for row in cells]
        columns[f"{gigabits} Gb/s: tokens/s"] = [
            f"{float(format(row['machines'] * tokens / row['step'], '.3g')):,.0f}" for row in cells
        ]
        columns[f"{gigabits} Gb/s: efficiency"] = [f"{row['efficiency']:.0%}" for row in cells]
    return markdown(columns)


# ---- demo.py ---------------------------------------------------------------------------------------------------------


def demo(first: Row, rows: list[Row]) -> str:
    found = {row["model"]: row for row in rows if row["table"] == "demo"}
    times = " and ".join(f"{name} in {row['seconds']:.1f} s" for name, row in found.items())
    return paragraph(
        "The two models start from the same weights and take the same steps, so they reach the same perplexity,",
        f"{found['C']['perplexity']:.1f}: {times} of training. C samples; torch takes the most probable word.",
    )


def sampled(first: Row, rows: list[Row]) -> str:
    rows = [row for row in rows if row["table"] == "sampled"]
    return markdown(
        {
            "softmax in training": [row["softmax"] for row in rows],
            "validation perplexity": [cell(row, "perplexity", ".1f") for row in rows],
            "seconds of training": [cell(row, "seconds", ".1f") for row in rows],
        }
    )


# ---- sizes.py --------------------------------------------------------------------------------------------------------


def sizes(first: Row, rows: list[Row]) -> str:
    mb = {row["what"]: f"{row['bytes'] / 1e6:,.{0 if row['bytes'] > 10e6 else 1}f} MB" for row in rows}
    shipped = {
        "`rnn:serve`": ("image with both back ends", f"{mb['rnn:serve']}, of which torch has {mb['torch']}"),
        "`rnn:slim`": ("image without torch: `/generate/torch` answers 501 and says why", mb["rnn:slim"]),
        "`lib/rnnlib.so`": ("the C library, with the kernels of every instruction set", mb["library"]),
    }
    what, size = zip(*shipped.values(), strict=True)
    return markdown({" ": list(shipped), "what": what, "size": size})
