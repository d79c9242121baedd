"""What the documentation shows has run: its Python, its commands as far as their flags, its links."""

import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import jax
import pytest
from flax import nnx

from polyjax import DualScorer, ModelConfig, PolyConfig, make_scorer
from polyjax.cli.evaluate import parse as parse_evaluate
from polyjax.cli.main import parse as parse_polyjax
from polyjax.cli.pretrain import parse as parse_pretrain
from polyjax.cli.training_flags import parse_run
from polyjax.data.tasks.jsonl import parse as parse_rows
from polyjax.data.text import TextConfig
from polyjax.data.tokenizers import WORDPIECE_FILE, WordPieceTokenizer
from polyjax.interop.huggingface import minilm_folder
from polyjax.nn.encoders import EncoderConfig
from polyjax.runs import ModelCard, write_model
from test_experiments import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "experiments" / "README.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
PARSERS = {"train": partial(parse_run, prog="run"), "evaluate": parse_evaluate, "pretrain": parse_pretrain}
COMMANDS = ("python experiments/", "polyjax ", "make ")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """The shell lines of a page: those that are set in by four spaces, and those in backticks."""
    text = re.sub(r"\\\n\s+", "", page.read_text())
    lines = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    lines += re.findall(r"`((?:python|make) [^`\n]+)`", text)  # polyjax's are often named without arguments
    return [line.split("  #")[0].strip() for line in lines if line.startswith(COMMANDS)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the run directories that the pages name, of a tiny model."""
    folder = tmp_path_factory.mktemp("docs")
    tokenizer = WordPieceTokenizer(minilm_folder() / WORDPIECE_FILE)
    shape, head = EncoderConfig.tiny(tokenizer.vocab_size), PolyConfig(n_codes=4)
    scorer = make_scorer(shape, head, rngs=nnx.Rngs(0))
    card = ModelCard(model=ModelConfig(encoder=shape, head=head), text=TextConfig())
    for name in ("chitchat-poly-minilm", "mine-poly-minilm", "converted", "pretrained"):
        write_model(folder / "runs" / name, scorer, card, tokenizer, config={"converted": "from nothing"})
    return folder


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_python_of_a_page_runs(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    shutil.rmtree(workplace / "replies-index", ignore_errors=True)
    names: dict[str, object] = {}
    with jax.numpy_dtype_promotion("standard"):
        for number, source in enumerate(blocks(page, "python")):
            exec(compile(source, f"{page.name}, block {number + 1}", "exec"), names)
    if "scorer" in names:
        assert isinstance(names["scorer"], DualScorer)
    if "best" in names:
        assert len(names["best"]) in (1, 2)  # type: ignore[arg-type]


def test_some_pages_have_python():
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 6


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_json_of_a_page_is_an_example(page, tmp_path):
    for source in blocks(page, "json"):
        path = tmp_path / "mine.jsonl"
        path.write_text(json.dumps(json.loads(source)) + "\n")
        assert parse_rows(path)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_commands_of_a_page_have_flags_that_exist(page, monkeypatch, workplace):
    monkeypatch.chdir(workplace)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in commands(page):
        if "..." in line or "…" in line:
            continue
        words = shlex.split(line)
        if words[0] == "make":
            assert words[1] in targets, line
        elif words[0] == "polyjax":
            parse_polyjax(words[1:])
        else:
            name = Path(words[1]).stem
            if name == "samples":  # it has two flags, and no function that reads them
                continue
            PARSERS["train" if name == "run" else name](words[2:])


def test_some_pages_have_commands():
    assert sum(len(commands(page)) for page in PAGES) > 40


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith("http") and not target.endswith(".svg"):  # those are drawn by make docs
            assert (page.parent / target).exists(), target
