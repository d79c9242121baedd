"""Measured numbers of README and docs are rendered from results/; what is still typed may only shrink."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "docs")]  # scripts that import each other by name

import record  # noqa: E402
import results_tables as tables  # noqa: E402
from record import Record  # noqa: E402

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN = [page for page in PAGES if page.parent.name != "reference"]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def one_space(text: str) -> str:
    return " ".join(text.split())


# Rendering


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_rendering_changes_no_page(page):
    """Whatever `make results` would change was typed, or was not rendered after a measurement.

    Whether a result is stale is left out: it changes with every commit to the code.
    """
    text = page.read_text(encoding="utf-8")
    assert tables.unmarked(tables.rendered(text)) == tables.unmarked(text), "run `make results`"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_ends_and_is_on_a_page_that_is_rendered(page):
    text = page.read_text(encoding="utf-8")
    begun = re.findall(r"<!-- results:([\w-]+) -->", text)
    assert len(begun) == text.count("<!-- end -->") == len(tables.BLOCK.findall(text))
    assert not begun or page in tables.PAGES


def test_every_table_has_a_place():
    text = "".join(page.read_text(encoding="utf-8") for page in tables.PAGES)
    assert set(re.findall(r"<!-- results:([\w-]+) -->", text)) == set(tables.BLOCKS)


@pytest.mark.parametrize("name", [name for name, block in tables.BLOCKS.items() if hasattr(block, "columns")])
def test_columns_are_what_the_benchmark_measures(name):
    """A name or unit that a benchmark does not write would be a column of dashes."""
    block = tables.BLOCKS[name]
    source = ROOT / "benchmarks" / f"{block.benchmark}.py"
    if not source.exists():
        source = ROOT / "benchmarks" / f"{block.benchmark.split('_')[0]}.py"
    text = source.read_text(encoding="utf-8")
    for column in block.columns:
        for word in (column.name, column.to):
            assert word is None or f'"{word}"' in text, word
        assert f'"{column.unit}"' in text or column.unit == "recall@1/20", column.unit
    for part in block.rows:
        assert f'"{part}": ' in text, part


@pytest.fixture
def measured(tmp_path, monkeypatch) -> Path:
    """A folder of results with two codes of one benchmark, on a host of a known kind."""
    monkeypatch.setattr(record, "ROOT", tmp_path)
    (tmp_path / "polyjax").mkdir()
    (tmp_path / "polyjax" / "version.py").write_text('__version__ = "1"\n')
    found = Record("scoring", measures=("polyjax",), peers=("numpy",))
    for codes, ours in ((16, 25.0), (64, 50.0)):
        case = {"codes": codes, "candidates": 100_000}
        found.add(case, "ms", {"torch": [100.0, 90.0, 110.0], "float32": [ours]}, to="torch")
        found.add(case, "recall of the scan's top", {"bfloat16": [1.0]})
    found.write(tmp_path / "results")
    return tmp_path


def test_a_block_is_rendered_from_results_and_can_be_rendered_again(measured):
    page = "before\n\n<!-- results:scoring -->\ntyped by hand: 3 ms\n<!-- end -->\n\nafter\n"
    text = tables.rendered(page, measured / "results")
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "typed by hand" not in text
    assert "| 16 | 100,000 | 100 | 25 (0.25) | – | 1 | – |" in text
    assert "| 64 | 100,000 | 100 | 50 (0.50) | – | 1 | – |" in text
    assert "jax" in text and "numpy" in text and tables.STALE not in text
    assert tables.rendered(text, measured / "results") == text
    with pytest.raises(KeyError):
        tables.rendered(page.replace("scoring", "scorning"))


def test_a_result_that_is_older_than_its_code_is_marked(measured):
    page = "<!-- results:scoring -->\n<!-- end -->\n"
    fresh = tables.rendered(page, measured / "results")
    (measured / "polyjax" / "version.py").write_text('__version__ = "2"\n')
    marked = tables.rendered(page, measured / "results")
    assert tables.STALE in marked and tables.unmarked(marked) == fresh


def test_a_block_without_results_is_empty(tmp_path):
    for name in tables.BLOCKS:
        page = f"<!-- results:{name} -->\n<!-- end -->\n"
        text = tables.rendered(page, tmp_path)
        assert text == page or name == "gpu" and "No GPU result exists yet" in text


def test_recorded_runs_are_a_table_of_accuracy(measured, tmp_path):
    import accuracy

    run = tmp_path / "runs" / "chitchat-poly-minilm"
    run.mkdir(parents=True)
    interval = "recall@1/20 95% interval"
    metrics = {
        "chance": {"recall@1/20": 0.05, interval: [0.05, 0.05], "mrr": 0.18},
        "poly-encoder": {"recall@1/20": 0.6, interval: [0.55, 0.65], "mrr": 0.7},
    }
    (run / "results.json").write_text(json.dumps(metrics))
    (run / "config.json").write_text(
        json.dumps({"train": {"seed": 3, "steps": 280}, "batch": {"batch_size": 32}})
    )
    path = accuracy.record_run(run, tmp_path / "results")
    assert path.name == "chitchat-poly-minilm.json" and json.loads(path.read_text())["seeds"] == [3]
    rung = {"name": "poly long", "recall_at_1": 0.6, "low": 0.55, "high": 0.65, "seeds": [0, 3], "steps": 280}
    rung |= {
        "contexts": 8960,
        "seconds": 9,
        "command": "polyjax train --arch poly --train.seed 0 --run-dir x",
    }
    rung["code"] = json.loads(path.read_text())["code"]
    (tmp_path / "results" / "ladder.json").write_text(json.dumps([rung]))
    text = tables.accuracy(tmp_path / "results")
    assert "| chance | 0.050 of 20 | exact |" in text
    cells = "0.600 of 20 | [0.550, 0.650] | 0, 3 | 280 x 32 |"
    assert f"| poly-encoder, long | {cells}" in text
    table = tables.ladder(tmp_path / "results")
    assert "| poly long | 0.600 | [0.550, 0.650] | 0, 3 | 280 | 8,960 | 9 |" in table
    assert "\n    polyjax train --arch poly    # poly long\n" in table
    for measured_folder in ("nn", "train"):
        (measured / "polyjax" / measured_folder).mkdir()
        (measured / "polyjax" / measured_folder / "new.py").write_text("x = 1\n")
    marked = tables.accuracy(tmp_path / "results")
    assert (
        "| poly-encoder, long † |" in marked and "† Older than" in marked and tables.unmarked(marked) == text
    )


# What is typed


UNITS = (
    r"ms|s|min|seconds?|minutes?|hours?|[KMGT]i?B|GFLOPs?(?:/s)?|TFLOPs?(?:/s)?|\w+/s|%|times|"
    r"(?:[a-z]+ )?(?:a|per) second|M parameters|x as"
)
NUMBER = r"(?<![\w.,/-])[+-]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?"
QUANTITY = re.compile(
    rf"{NUMBER}(?=(?:,? (?:and|to|or) [\d.,]+)* ?(?:{UNITS})(?![\w/]))"  # 4 to 10 minutes
    r"|(?<![\w.])[+-]?0?\.\d{2,}(?!\.?\d)"  # .626, 0.18
    r"|(?<![\w.])1\.\d\d(?!\.?\d)"  # ratios
)
MEASURED_TABLE = re.compile(
    r"\bms\b|\bMB\b|\bGiB\b|seconds|\ba second|texts/s|recall|peak memory|value|ratio|seed \d"
)
SETTINGS = re.compile(r"\d{4}-\d\d-\d\d|\barXiv[: ]\S+|jax [\d.]+|Python [\d.]+|95% interval")
"""Numbers that are no measurement: dates, papers, versions."""


def quantities(text: str) -> list[str]:
    """Numbers outside blocks and code that look measured: with a unit, a fraction, or in such a table."""
    text = re.sub(r"^```.*?^```", "", tables.outside(text), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|^    .*$", "", text, flags=re.MULTILINE)
    text, found, in_measured = SETTINGS.sub("", text), [], False
    before = ""
    for line in text.splitlines():
        if line.startswith("|") and not before.startswith("|"):
            in_measured = bool(MEASURED_TABLE.search(line))
        pattern = re.compile(NUMBER) if line.startswith("|") and in_measured else QUANTITY
        found += [found_one[0] for found_one in pattern.finditer(line)]
        before = line
    return found


LEFTOVERS: dict[str, int] = {
    "docs/choose.md": 1,
    "docs/howto/hard-negatives-and-teachers.md": 1,
    "docs/howto/pretraining.md": 6,
    "docs/howto/serving.md": 1,
    "docs/results/earlier.md": 66,
}
"""How many measured numbers a page has outside rendered blocks, typed before results/ existed. A count only
gets smaller: measure again with the command beside it, and let `make results` render the table."""


@pytest.mark.parametrize("page", SHOWN, ids=name_of)
def test_no_new_measured_number_is_typed(page):
    found = quantities(page.read_text(encoding="utf-8"))
    known = LEFTOVERS.get(name_of(page), 0)
    assert len(found) <= known, f"{found}: record new ones in results/ and render them, do not type them"
    assert len(found) >= known, (
        f"fewer than {known}, well done: set LEFTOVERS[{name_of(page)!r}] = {len(found)}"
    )


def test_leftovers_are_pages():
    assert set(LEFTOVERS) <= {name_of(page) for page in SHOWN}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It takes 33 ms instead of 298 ms.", ["33", "298"]),
        ("4 to 10 minutes on two cores", ["4", "10"]),
        ("recall@1/20 is .626 [.599, .653]", [".626", ".599", ".653"]),
        ("1.4 GiB, 69 a second, 338 GFLOP/s, 1.0%", ["1.4", "69", "338", "1.0"]),
        ("| codes | ms |\n| --- | --- |\n| 16 | 1,296 |", ["16", "1,296"]),
        ("| layers | width |\n| --- | --- |\n| 12 | 768 |", []),
        ("12 layers, 768 wide, 64 codes, 20 candidates, arXiv 1905.01969, jax 0.10.2, 2026-11-23", []),
        ("Python 3.11 or newer; `--timeout 5 s`\n\n    sleep 5 s\n", []),
        ("<!-- results:scoring -->\n| ms |\n| 5 |\n<!-- end -->\n7 ms", ["7"]),
    ],
)
def test_measured_numbers_are_found(text, found):
    assert quantities(text) == found
