"""Render the tables of measured numbers from results/: python docs/results_tables.py (make results).

A page has blocks between ``<!-- results:NAME -->`` and ``<!-- end -->``; what is between them is rendered and
never typed. A block without any result stays empty. A result that is older than the code that it measures is
marked (benchmarks/record.py says how that is known). Pictures are drawn by docs/results_pictures.py.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from common import interval_of_median, interval_of_quotient  # noqa: E402
from record import RESULTS, read, stale  # noqa: E402

PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "choose.md",
    *(ROOT / "docs" / "results" / f"{name}.md" for name in ("accurate", "fast", "scale", "robust")),
)
"""The pages that have blocks."""
BLOCK = re.compile(r"(<!-- results:([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
STALE = " **Older than the code that it measures.**"
"""Says that a result is stale; whether it is changes with the code, not with the results."""
STALE_ROW, STALE_ROWS = " †", "\n† Older than the code that it measures.\n"
"""The same for rows of a table, in a row and below the table."""

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of medians.

    Attributes:
        heading: of the table.
        name: of the measurements.
        unit: of the measurements.
        to: show the ratio to this name, in brackets.
        interval: show the median's 95% interval.
    """

    heading: str
    name: str
    unit: str = "ms"
    to: str | None = None
    interval: bool = False


@dataclass(frozen=True)
class Table:
    """A block: one table for each kind of host, the newest first.

    Attributes:
        benchmark: whose results are shown.
        rows: parts of a case that name a row, with their headings.
        columns: what stands in a row.
        where: parts of a case that must have these values.
    """

    benchmark: str
    rows: Mapping[str, str]
    columns: Sequence[Column]
    where: Mapping[str, Any] | None = None

    def __call__(self, results: Path) -> str:
        """The Markdown of the block."""
        return "\n".join(self._of(result) for result in read(self.benchmark, results))

    def _of(self, result: Result) -> str:
        cases: list[Mapping[str, Any]] = []
        for one in result["measurements"]:
            case = {name: one["case"].get(name) for name in self.rows}
            wanted = all(one["case"].get(name) == value for name, value in (self.where or {}).items())
            if wanted and case not in cases:
                cases.append(case)
        heads = [*self.rows.values(), *(column.heading for column in self.columns)]
        lines = [row(heads), row(["---:"] * len(heads))]
        for case in cases:
            wanted = case | dict(self.where or {})
            cells = [f"{value:,}" if isinstance(value, int) else str(value) for value in case.values()]
            lines.append(row(cells + [shown(result, column, wanted) for column in self.columns]))
        return caption(result) + "\n\n" + "\n".join(lines) + "\n"


def shown(result: Result, column: Column, case: Mapping[str, Any]) -> str:
    """A median, with its ratio where one is asked for; a dash where it was not measured."""
    for one in result["measurements"]:
        if one["name"] == column.name and one["unit"] == column.unit and case.items() <= one["case"].items():
            text = number(one["median"])
            for ratio in result["ratios"] if column.to else ():
                same = ratio["name"] == one["name"] and ratio["unit"] == one["unit"]
                if same and ratio["to"] == column.to and ratio["case"] == one["case"]:
                    text += f" ({ratio['value']:.2f})"
            if column.interval:
                low, high = interval_of_median(one["samples"])
                text += f" [{low:.2f}, {high:.2f}]"
            return text
    return "–"


def number(value: float) -> str:
    """Three digits that count, and all digits of what is larger.

    >>> [number(x) for x in (1234.5, 56.78, 5.678, 0.5678, 0.012345, 3.0)]
    ['1,234', '56.8', '5.68', '0.568', '0.0123', '3']
    """
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def caption(result: Result) -> str:
    """Where, when and with what a result was measured."""
    host = result["host"]
    units = "with" if {"avx512_bf16", "amx_bf16", "bf16"} & set(host["flags"]) else "without"
    machine = host["device"] or f"{host['cores']} cores of {host['cpu']}, {units} bfloat16 units"
    peers = ", ".join(f"{name} {version}" for name, version in result["peers"].items())
    versions = f"jax {result['versions']['jax']}" + (f", {peers}" if peers else "")
    commit = f", commit `{result['commit']}`" if result["commit"] else ""
    mark = STALE if stale(result) else ""
    return f"`{result['command']}` on {machine}; {result['date'][:10]}{commit}; {versions}.{mark}"


def row(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def accuracy(results: Path) -> str:
    """Baselines of the newest recorded run, and the ladder, whose own table has the commands."""
    found = read("accuracy", results)
    if not found:
        return ""
    heads = ["model", "recall@1", "95% interval", "seeds", "steps x contexts"]
    lines = [row(heads), row(["---", "---:", "---", "---:", "---:"])]
    *baselines, _ = found[0]["results"].items()
    for name, metrics in baselines:
        lines.append(row([name, *recall(metrics), "", ""]))
    rungs = _json(results / "ladder.json") or []
    for one in rungs:
        arch, kind = one["name"].split(" ", 1)
        size = f"{one['steps']:,} x {one['contexts'] // one['steps']}"
        cells = [f"{one['recall_at_1']:.3f} of 20", _interval(one), _seeds(one), size]
        lines.append(row([f"{arch}-encoder, {kind}{_mark(one)}", *cells]))
    return "\n".join(lines) + "\n" + (STALE_ROWS if any(map(stale, rungs)) else "")


def ladder(results: Path) -> str:
    """The table of experiments/ladder.py, means over seeds and of the seeds' own intervals; its commands."""
    found = _json(results / "ladder.json")
    if not found:
        return ""
    heads = ["row", "recall@1 of 20", "95% interval", "seeds", "steps", "contexts", "seconds"]
    lines = [row(heads), row(["---", "---:", "---", "---:", "---:", "---:", "---:"])]
    for one in found:
        counts = [f"{one[name]:,}" for name in ("steps", "contexts", "seconds")]
        cells = [f"{one['recall_at_1']:.3f}", _interval(one), _seeds(one), *counts]
        lines.append(row([f"{one['name']}{_mark(one)}", *cells]))
    commands = [f"    {_command(one)}    # {one['name']}" for one in found]
    marked = STALE_ROWS if any(map(stale, found)) else ""
    return "\n".join(lines) + "\n" + marked + "\n" + "\n".join(commands) + "\n"


def _mark(rung: Mapping[str, Any]) -> str:
    return STALE_ROW if stale(rung) else ""


def _interval(rung: Mapping[str, Any]) -> str:
    return f"[{rung['low']:.3f}, {rung['high']:.3f}]"


def _seeds(rung: Mapping[str, Any]) -> str:
    return ", ".join(map(str, rung["seeds"]))


def _command(rung: Mapping[str, Any]) -> str:
    return rung["command"].split(" --train.seed")[0]


def gates(results: Path) -> str:
    """The table of experiments/cross_start.py."""
    found = _json(results / "cross_start.json")
    if not found:
        return ""
    about = f"`{found['command']}`: {found['task']}, {found['rows']} rows of the {found['split']} split"
    lines = [row(["gate", "recall@1 of 20", "95% interval", "loss"]), row(["---:", "---:", "---", "---:"])]
    for one in found["untrained"]:
        low, high = one["recall@1/20 95% interval"]
        lines.append(
            row([one["gate"], f"{one['recall@1/20']:.3f}", f"[{low:.3f}, {high:.3f}]", f"{one['loss']:.3f}"])
        )
    return f"{about}, {found['encoder']}, {found['dtype']}.\n\n" + "\n".join(lines) + "\n"


def offered(results: Path) -> str:
    """Latency against offered load, from benchmarks/load.py."""
    heads = ["offered, of saturation", "requests/s", "median, ms", "p90, ms", "p99, ms"]
    ends = {"refused at once": (429, 503), "too late": (504,), "lost": (0,)}
    text = []
    for result in read("load", results):
        lines = [row([*heads, *ends]), row(["---:"] * len([*heads, *ends]))]
        for one in result["offered"]:
            statuses = [status for status, _ in result["samples"][f"share {one['share']:g}"]]
            times = [number(one[f"p{share}_ms"]) for share in (50, 90, 99)]
            counts = [f"{sum(status in some for status in statuses):,}" for some in ends.values()]
            counts = [f"{n} of {len(statuses):,}" for n in counts]
            lines.append(row([f"{one['share']:.0%}", number(one["per_s"]), *times, *counts]))
        text.append(caption(result) + "\n\n" + "\n".join(lines) + "\n")
    return "\n".join(text)


def families(results: Path) -> str:
    """Encoder families beside PyTorch, and their ratios over BERT's, from benchmarks/encoders.py."""
    heads = ["family", "part", "PyTorch, ms", "polyjax, ms", "ratio over BERT's", "95% interval"]
    text = []
    for result in read("encoders", results):
        samples = {
            (one["case"]["family"], one["case"]["part"], one["name"]): one["samples"]
            for one in result["measurements"]
        }
        turns = {
            (family, part): [a / b for a, b in zip(times, samples[family, part, "torch"], strict=True)]
            for (family, part, name), times in samples.items()
            if name == "polyjax"
        }
        lines = [row(heads), row(["---", "---", *["---:"] * 4])]
        for (family, part), ratios in turns.items():
            ours, torch = (median(samples[family, part, name]) for name in ("polyjax", "torch"))
            low, high = interval_of_quotient(ratios, turns["bert", part])
            cells = [family, part, number(torch), f"{number(ours)} ({ours / torch:.2f})"]
            over = f"{median(ratios) / median(turns['bert', part]):.2f}"
            lines.append(row([*cells, over, f"[{low:.2f}, {high:.2f}]"]))
        text.append(caption(result) + "\n\n" + "\n".join(lines) + "\n")
    return "\n".join(text)


def versions(results: Path) -> str:
    """This library beside an earlier commit of it, from benchmarks/versions.py."""
    text = []
    for result in [*read("versions", results), *read("versions_start", results)]:
        commits = (f"`{commit[:7]}`, ms" for commit in (result["before"], result["commit"]))
        heads = ["what", *commits, "ratio of pairs, median", "95% interval"]
        lines = [row(heads), row(["---", *["---:"] * 4])]
        for one in result["rows"]:
            times = [number(one[name]) for name in ("before", "now")]
            interval = f"[{one['low']:.3f}, {one['high']:.3f}]"
            lines.append(row([one["what"], *times, f"{one['ratio']:.3f}", interval]))
        text.append(caption(result) + "\n\n" + "\n".join(lines) + "\n")
    return "\n".join(text)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def recall(metrics: Mapping[str, Any]) -> list[str]:
    """Recall@1 among how many, and its interval."""
    name = next(name for name in metrics if name.startswith("recall@1/"))
    low, high = metrics[f"{name} 95% interval"]
    interval = f"[{low:.3f}, {high:.3f}]" if low < high else "exact"
    return [f"{metrics[name]:.3f} of {name.split('/')[1]}", interval]


@dataclass(frozen=True)
class Picture:
    """A block: the picture that docs/results_pictures.py draws of a benchmark's newest result.

    Attributes:
        benchmark: whose picture it is.
        alt: what it shows, in words.
    """

    benchmark: str
    alt: str

    def __call__(self, results: Path) -> str:
        """The Markdown of the block; its pages are in docs/results."""
        return f"![{self.alt}](../figures/{self.benchmark}.png)\n" if read(self.benchmark, results) else ""


def gpu(results: Path) -> str:
    """Everything that benchmarks/gpu.py measured, part by part, or that there is nothing."""
    found = [result for result in read("gpu", results) if result["host"]["device"]]
    if not found:
        return "No GPU result exists yet: `python benchmarks/gpu.py` measures for eight minutes on one GPU.\n"
    text = []
    for result in found:
        text.append(caption(result) + "\n")
        for name, part in result["parts"].items():
            rows = [one for one in result["measurements"] if one["case"]["part"] == name]
            if not rows:
                reason = part.get("skipped") or part.get("failed") or "nothing was measured"
                text.append(f"*{name}*: {reason}.\n")
                continue
            lines = [row([name, "what", "median", "unit"]), row(["---", "---", "---:", "---"])]
            for one in rows:
                case = ", ".join(f"{key} {value}" for key, value in one["case"].items() if key != "part")
                lines.append(row([case, one["name"], number(one["median"]), one["unit"]]))
            text.append("\n".join(lines) + "\n")
    return "\n".join(text)


def seconds(*names: str) -> tuple[Column, ...]:
    """Columns of seconds."""
    return tuple(Column(f"{name}, s", name, "s") for name in names)


STAGES = ("prepare", "vocabulary", "tokenise")
CORPUS = (
    *seconds(*STAGES),
    Column("all, pairs/s", "all", "pairs/s"),
    *(Column(f"{stage}, peak MB", stage, "MB") for stage in STAGES),
)
PEER = "sentence-transformers"
BLOCKS: Mapping[str, Callable[[Path], str]] = {
    "accuracy": accuracy,
    "ladder": ladder,
    "gates": gates,
    "offered": offered,
    "gpu": gpu,
    "scoring": Table(
        "scoring",
        {"codes": "codes", "candidates": "candidates"},
        (
            Column("PyTorch, ms", "torch"),
            Column("scan, ms", "float32", to="torch"),
            Column('`"quick"`, ms', "bfloat16", to="torch"),
            Column('`"quick"` finds of the scan\'s 100', "bfloat16", "recall of the scan's top"),
            Column("certified, ms", "certified", to="torch"),
        ),
    ),
    "certified": Table(
        "certified",
        {"run": "run", "codes": "codes", "candidates": "candidates"},
        (
            Column("scan, ms", "scan"),
            Column("certified, ms", "certified", to="scan"),
            Column("scored exactly, %", "scored exactly", "% of the candidates"),
            Column("same as the scan", "same", "contexts"),
            Column("contexts", "all", "contexts"),
        ),
    ),
    "millions": Table(
        "millions",
        {"codes": "codes", "candidates": "candidates"},
        (
            Column("scan, ms", "scan"),
            Column("certified, ms", "certified", to="scan"),
            Column("on disk, MB", "on disk", "MB"),
            Column("peak memory, MB", "peak memory", "MB"),
        ),
    ),
    "reply": Table(
        "reply",
        {"part": "part"},
        (
            Column("PyTorch, ms", "torch"),
            Column("polyjax float32, ms", "polyjax float32", to="torch"),
            Column("polyjax bfloat16, ms", "polyjax bfloat16", to="torch"),
        ),
    ),
    "encoding": Table(
        "encoding",
        {"texts": "texts"},
        tuple(
            Column(f"{name}, texts/s", name, "texts/s", to=PEER)
            for name in (PEER, "fixed padding, torch", "polyjax float32", "polyjax bfloat16")
        ),
    ),
    "encoder": Table(
        "encoder",
        {"rows": "rows", "tokens": "tokens"},
        tuple(
            Column(f"{name}, ms", name, to="torch float32")
            for name in ("torch float32", "polyjax float32", "polyjax bfloat16", "torch bfloat16")
        ),
    ),
    "train_step": Table(
        "train_step",
        {"arch": "architecture", "dtype": "precision"},
        (Column("PyTorch, ms", "torch"), Column("polyjax, ms", "polyjax", to="torch")),
    ),
    "startup": Table(
        "startup",
        {},
        seconds("import", "load", "first answer", "in all"),
    ),
    "startup_search": Table(
        "startup_search",
        {},
        seconds("import", "load", "open, compile", "first answer", "in all"),
    ),
    "zoo": Table(
        "zoo",
        {"candidates": "candidates", "dtype": "precision"},
        (
            Column("conversion, s", "conversion", "s"),
            Column("its peak memory, GiB", "conversion", "GiB"),
            Column("candidates/s", "encoding", "candidates/s"),
            Column("a reply, ms", "reply"),
            Column("peak memory, GiB", "all", "GiB"),
        ),
    ),
    "tradeoff": Table(
        "tradeoff",
        {"row": "row of the ladder", "candidates": "candidates timed"},
        (
            Column("recall@1/20", "recall", "recall@1/20"),
            Column("ms for 1,000 candidates", "time", "ms for 1,000 candidates"),
        ),
    ),
    "chunks": Table(
        "chunks",
        {"arch": "architecture", "contexts": "contexts", "chunk": "contexts of a chunk"},
        (
            Column("loss and gradients, ms", "loss and gradients"),
            Column("temporary memory, MB", "temporary memory", "MB"),
        ),
    ),
    "input": Table(
        "input",
        {"steps": "steps", "contexts": "contexts"},
        (
            Column("new batch, ms", "pipeline", to="held"),
            Column("held batch, ms", "held"),
            Column("share waiting", "waiting", "share of the steps"),
            Column("share of padding", "padding", "share of the steps"),
        ),
    ),
    "corpus_pairs": Table("corpus_pairs", {"pairs": "pairs"}, CORPUS),
    "corpus_reddit": Table("corpus_reddit", {"pairs": "pairs"}, CORPUS),
    "encoders": families,
    "serve": Table(
        "serve",
        {"model": "model", "texts": "texts", "tokens": "tokens each"},
        (
            Column("Ranker.rank, ms", "ranker"),
            Column("through the server, ms", "server", to="ranker"),
            Column("more, ms (median of pairs, 95% interval)", "added", interval=True),
            Column("outside the model, ms", "outside", interval=True),
            Column("ready after, s", "start", "s"),
        ),
    ),
    "load": Table(
        "load",
        {"texts": "texts", "clients": "clients"},
        (
            Column("Ranker.rank one by one, requests/s", "Ranker.rank", "requests/s"),
            Column("server, requests/s", "server", "requests/s", to="Ranker.rank"),
            Column("alone, before twice that load, ms", "alone before"),
            Column("alone, afterwards, ms", "alone after"),
            Column("memory before, MB", "before", "MB"),
            Column("memory afterwards, MB", "after twice saturation", "MB"),
        ),
    ),
    "versions": versions,
    "picture-millions": Picture(
        "millions", "Time of a search, and size on disk and in memory, against the number of candidates"
    ),
    "picture-certified": Picture(
        "certified",
        "Share of the candidates that certified search scores exactly, and its time, over contexts",
    ),
    "picture-corpus_pairs": Picture(
        "corpus_pairs", "Seconds and peak memory of preparing a corpus against its number of pairs"
    ),
}
"""What a block may be named, with what renders it."""


def rendered(text: str, results: Path = RESULTS) -> str:
    """A page with its blocks rendered.

    Args:
        text: of the page.
        results: folder of the results.

    Raises:
        KeyError: there is no block of a name.
    """

    def block(found: re.Match[str]) -> str:
        content = BLOCKS[found[2]](results)
        return found[1] + (f"\n{content}\n" if content else "") + found[4]

    return BLOCK.sub(block, text)


def outside(text: str) -> str:
    """A page without its blocks: what is typed."""
    return BLOCK.sub("", text)


def unmarked(text: str) -> str:
    """A page without the marks of stale results, which come with each change of the code."""
    for mark in (STALE, STALE_ROWS, STALE_ROW):
        text = text.replace(mark, "")
    return text


def main() -> None:
    """Render all pages; name those that changed."""
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = rendered(before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"rendered {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
