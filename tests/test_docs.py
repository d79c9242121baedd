"""The documentation is right: its Python runs and prints what it shows; commands, flags and links exist."""

import ast
import contextlib
import importlib
import inspect
import io
import json
import re
import shlex
import tokenize
import tomllib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import nnx

import polyjax
from polyjax import CrossScorer, DualScorer, EncoderConfig, ModelConfig, PolyConfig, Ranked, make_scorer
from polyjax.cli.evaluate import parse as parse_evaluate
from polyjax.cli.main import parse as parse_polyjax
from polyjax.cli.pretrain import parse as parse_pretrain
from polyjax.cli.training_flags import parse_run
from polyjax.data.huggingface_tokenizer import TOKENIZER_FILE, HuggingFaceTokenizer
from polyjax.data.tasks.jsonl import parse as parse_rows
from polyjax.data.text import TextConfig
from polyjax.errors import InputError
from polyjax.interop.huggingface import minilm_folder
from polyjax.runs import ModelCard, write_model
from polyjax.serve.openapi import OPERATIONS
from test_structure import FLOORS

ROOT = Path(__file__).parents[1]
README, CHANGELOG = ROOT / "README.md", ROOT / "CHANGELOG.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, ROOT / "experiments" / "README.md", *DOCS]
EVERYTHING = [*PAGES, ROOT / "CONTRIBUTING.md", CHANGELOG]
SHOWN = [path for path in PAGES if path.parent.name != "reference"]
"""Pages that show Python, commands, numbers; the reference is made of docstrings, which doctests run."""


def named(paths: list[Path]) -> dict[str, Any]:
    """Arguments of parametrize: paths, and their names as ids."""
    return {"argvalues": paths, "ids": [str(path.relative_to(ROOT)) for path in paths]}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def cells(page: Path) -> Iterator[list[str]]:
    """The rows of all tables of a page, their headers among them."""
    for line in page.read_text().splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.split("|")[1:-1]]


def prose(page: Path) -> str:
    """A page without what is code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`]*`|\]\([^)]*\)|^    .*$", "", text, flags=re.MULTILINE)


# Python


ROWS = [{"context": f"my printer says {code}", "label": f"see page {code}"} for code in range(120)]
RUNS = ("chitchat-poly-minilm", "mine-poly-minilm", "converted", "pretrained", "ladder/poly-demo-0")


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """Run directories of an untrained, tiny model, under the names that the pages use."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = HuggingFaceTokenizer(minilm_folder() / TOKENIZER_FILE)
    shape, head = EncoderConfig.tiny(tokenizer.vocab_size), PolyConfig(n_codes=4, shared_encoder=True)
    scorer = make_scorer(shape, head, rngs=nnx.Rngs(0))
    card = ModelCard(model=ModelConfig(encoder=shape, head=head), text=TextConfig())
    for name in RUNS:
        write_model(folder / name, scorer, card, tokenizer, config={"converted": "from nothing"})
    return folder


@pytest.fixture
def workplace(models, tmp_path, monkeypatch) -> Path:
    """An empty folder with what a reader is said to have: a file of rows, one of candidates, trained runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "other.jsonl").write_text((tmp_path / "mine.jsonl").read_text())
    (tmp_path / "replies.txt").write_text("".join(f"{row['label']}\n" for row in ROWS))
    (tmp_path / "runs").mkdir()
    for name in RUNS:
        (tmp_path / "runs" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "runs" / name).symlink_to(models / name)
    return tmp_path


@pytest.fixture
def small_fit(monkeypatch) -> None:
    """``polyjax.fit`` with a page's arguments, but with a tiny encoder and for two steps."""
    fit = polyjax.fit
    small = {
        "text": {"context_tokens": 16, "candidate_tokens": 16, "buckets": (16,)},
        "batch": {"batch_size": 8},
        "train": {"validate_every_steps": 1, "validate_examples": 8},
    }

    def called(data: Any, **given: Any) -> polyjax.Run:
        if "init" not in given:
            given.setdefault("encoder", "tiny")
            for name, settings in small.items():
                if isinstance(given.get(name, {}), dict):
                    given[name] = settings | given.get(name, {})
            longest = given["text"]["context_tokens"]
            given["text"]["context_tokens"] = min(longest, 64)  # a tiny encoder has few positions
        given["steps"] = min(2, given.get("steps") or 2)
        return fit(data, **given)

    monkeypatch.setattr(polyjax, "fit", called)


@pytest.fixture(autouse=True)
def settings_of_jax():
    """A page may show how a user sets jax's settings."""
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def of_readme(names: dict[str, Any]) -> None:
    assert isinstance(names["ranker"], polyjax.Ranker) and isinstance(names["found"], polyjax.Found)
    assert names["run"].test.model["n"] > 0


def of_own_data(names: dict[str, Any]) -> None:
    assert [type(found) for found in names["best"]] == [Ranked]
    assert (names["run"].folder / "rows.jsonl").is_file()


def of_python(names: dict[str, Any]) -> None:
    assert names["run"].folder == Path("runs/printers") and len(names["losses"]) > 0
    assert names["ranker"].scorer.settings.head.arch == "poly"
    assert isinstance(names["scorer"], DualScorer) and not isinstance(names["scorer"], CrossScorer)
    assert not hasattr(names["scorer"], "score_pairs")


def of_indexes(names: dict[str, Any]) -> None:
    assert len(names["best"]) == 2 and names["best"].certified, "a flat index gives the true lists"
    assert {found.text for found in names["best"]} < set(names["replies"])
    assert names["n_programs"] > 0


CLAIMS: dict[str, Callable[[dict[str, Any]], None]] = {
    "README.md": of_readme,
    "own-data.md": of_own_data,
    "python.md": of_python,
    "indexes.md": of_indexes,
}
"""What holds after the Python of a page has run."""


@pytest.mark.parametrize("page", **named([page for page in PAGES if blocks(page, "python")]))
def test_the_python_of_a_page_runs_and_prints_what_it_shows(page, workplace, small_fit):
    """The text block after a Python block is what that prints."""
    names: dict[str, Any] = {"__name__": "page"}
    parts = re.split(r"^```(python|text)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    printed = None
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for number, (language, source) in enumerate(zip(parts[1::3], parts[2::3], strict=True)):
            if language == "text":
                assert printed == source
                continue
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(source, f"{page.name}, block {number + 1}", "exec"), names)
            printed = out.getvalue()
    CLAIMS.get(page.name, lambda names: None)(names)


def test_every_claim_has_its_page():
    assert {page.name for page in PAGES if blocks(page, "python")} >= set(CLAIMS)


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "index.md"], ids=["README", "index"])
def test_the_first_python_of_a_start_page_needs_no_training_and_shows_its_output(page, small_fit):
    """In order: Python that ranks with pretrained weights, its output, and only then Python that trains."""
    first, *_ = blocks(page, "python")
    assert "from_encoder" in first and "fit" not in first
    assert re.search(
        r"^```python\n.*?^```\n\nprints\n\n```text\n", page.read_text(), re.MULTILINE | re.DOTALL
    )


def test_the_table_of_fit_states_its_arguments_and_defaults():
    """docs/howto/python.md; a default in backticks is the value itself."""
    parameters = inspect.signature(polyjax.fit).parameters
    table = [row for row in cells(ROOT / "docs" / "howto" / "python.md") if row[0].startswith("`")]
    stated = {}
    for names, default, *_ in table:
        for name in re.findall(r"`(\w+)`", names):
            if name in parameters:
                stated[name] = default
    assert {"arch", "encoder", "preset", "steps", "epochs", "run_dir", "seed", "callbacks"} <= set(stated)
    for name, default in stated.items():
        if literal := re.fullmatch(r'`("\w+"|\d+|True|False)`|(\d+)', default):
            assert ast.literal_eval(literal[1] or literal[2]) == parameters[name].default, name


def test_the_table_of_own_data_names_one_setting_twice():
    """Python's argument and the flag of a row are the same setting, whose values have the same effect."""
    page = ROOT / "docs" / "howto" / "own-data.md"
    rows = [row for row in cells(page) if len(row) == 4 and row[1].startswith("`--")]
    assert len(rows) >= 6
    for python, flags, *_ in rows:
        arguments = [ast.parse(f"f({code})" if code[-1] != "=" else f"f({code}0)") for code in quoted(python)]
        keywords = [call.body[0].value.keywords[0] for call in arguments]  # type: ignore[attr-defined]
        for keyword in keywords:
            assert keyword.arg in inspect.signature(polyjax.fit).parameters
            if isinstance(keyword.value, ast.Dict):
                meant = {
                    f"--{keyword.arg}.{key}".replace("_", "-") for key in ast.literal_eval(keyword.value)
                }
                assert meant == set(re.findall(r"--[\w.-]+", flags)), python


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_keys_of_a_row_are_those_that_are_documented(tmp_path):
    """The error for an unknown key lists those that there are; a row needs the required ones only."""
    page = ROOT / "docs" / "howto" / "own-data.md"
    stated = {quoted(row[0])[0]: row[1] for row in cells(page) if row[1] in ("required", "optional")}
    path, row = tmp_path / "mine.jsonl", {"context": "my lamp", "label": "a bulb"}
    path.write_text(json.dumps(row | {"contxt": "x"}))
    with pytest.raises(InputError) as refused:
        parse_rows(path)
    known = re.search(r"expected ([\w, ]+)", str(refused.value))
    assert known and set(stated) == set(known[1].split(", "))
    assert {key for key, need in stated.items() if need == "required"} == set(row)
    for missing in row:
        path.write_text(json.dumps({key: text for key, text in row.items() if key != missing}))
        with pytest.raises(InputError):
            parse_rows(path)


@pytest.mark.parametrize("page", **named([page for page in PAGES if blocks(page, "json")]))
def test_the_json_of_a_page_is_an_example(page, tmp_path):
    for source in blocks(page, "json"):
        row = json.loads(source)
        (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
        (example,) = parse_rows(tmp_path / "mine.jsonl")
        assert example.context == tuple(row["context"]) and example.label_text == row["label"]


# Commands


COMMANDS = ("python experiments/", "python benchmarks/", "polyjax ", "make ", "pip install ", "srun polyjax ")
SCRIPTS = {
    "run": partial(parse_run, prog="run"),
    "evaluate": parse_evaluate,
    "pretrain": parse_pretrain,
}


def commands(page: Path) -> list[str]:
    """The command lines of a page: those that are set in by four spaces, and those in backticks."""
    text = re.sub(r"\\\n\s+", "", page.read_text())
    lines = re.findall(r"^    (?:export .*|(?:[A-Z_]+=\S+ )*)(\S.*)$", text, re.MULTILINE)
    lines += [" ".join(line.split()) for line in re.findall(r"`((?:polyjax|python|make|pip) [^`]+)`", text)]
    lines = [line.split("  #")[0].removesuffix("&").strip() for line in lines if line.startswith(COMMANDS)]
    lines = [line.removeprefix("srun ") for line in lines if not re.fullmatch(r"polyjax [a-z]+", line)]
    return [line for line in lines if not line.endswith("...")] + in_tables(page)


def in_tables(page: Path) -> list[str]:
    """Commands of tables whose head names what each row begins with, as ``polyjax train --arch poly ...``."""
    found, head = [], ""
    for before, row in zip(["", *page.read_text().splitlines()], page.read_text().splitlines(), strict=False):
        code = quoted(row.split("|")[1]) if row.startswith("| ") else []
        if not row.startswith("|"):
            head = ""
        elif not before.startswith("|") and code and code[0].startswith("polyjax "):
            head = code[0].removesuffix(" ...")
        elif head and code and code[0].startswith("--"):
            found.append(f"{head} {code[0]}")
    return found


EXPERIMENTS = {f"experiments/{name}.py" for name in ("cross_start", "ladder", "samples")}
"""Scripts with settings of their own; the others are entries of the commands."""


def check_command(line: str) -> None:
    """Raise unless a command exists and knows its flags and their values."""
    line = re.sub(r" --init RUN$| \.\.\.", "", line)  # a model of the recipe's architecture is not here
    words = shlex.split(line)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets, line
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for asked in re.findall(r"\.\[([\w,]+)\]", line):
            assert set(asked.split(",")) <= set(extras), line
    elif words[0] == "polyjax":
        if words[1:] not in (["--version"], ["--help"]) and words[-1] != "--help":
            parse_polyjax([re.sub(r"^[NM]$", "1", word) for word in words[1:]])
    elif words[1].startswith("benchmarks/") or words[1] in EXPERIMENTS:
        source = (ROOT / words[1]).read_text()
        for flag in (word.split("=")[0] for word in words if word.startswith("--")):
            field = flag[2:].replace("-", "_")
            assert re.search(rf'^    {field}\b.*:|"{flag}"', source, re.MULTILINE), line
    else:
        SCRIPTS[Path(words[1]).stem](words[2:])


@pytest.mark.parametrize("page", **named([page for page in PAGES if commands(page)]))
def test_the_commands_of_a_page_exist_with_their_flags(page, workplace):
    for line in commands(page):
        try:
            check_command(line)
        except InputError as error:
            pytest.fail(f"{line}\n{error}")


@pytest.mark.parametrize(
    "line",
    [
        "make demmo",
        "polyjax trane",
        "polyjax train --archh poly",
        "polyjax train --arch bi --head.n-codes 16",
        "python benchmarks/scoring.py --candidate 5",
        "python benchmarks/nothing.py",
        "python experiments/evaluate.py --splitt test",
        "pip install -e '.[demmo]'",
    ],
)
def test_a_wrong_command_is_found(line, workplace):
    with pytest.raises((AssertionError, InputError, FileNotFoundError)):
        check_command(line)


def test_pages_have_commands():
    assert sum(len(commands(page)) for page in PAGES) > 60
    assert {"make demo", "make test"} <= set(commands(README))


FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*")
HELPS = (
    *(["train", "--arch", arch, "--help"] for arch in ("bi", "poly", "cross")),
    *(["train", "--task", task, "--help"] for task in ("jsonl:mine.jsonl", "convai2", "dstc7")),
    ["train", "--task", "wikipedia_search", "--help"],
    ["evaluate", "--task", "convai2", "--help"],
    ["pretrain", "--help"],
    ["distil", "--help"],
    ["mine", "--help"],
    *(["index", name, "--help"] for name in ("build", "add", "remove", "compact", "info")),
    ["export", "sentence-transformers", "--help"],
    *([name, "--help"] for name in ("rank", "search", "chat", "serve", "convert", "export", "doctor")),
)
ALIASES = {"--init-from", "--task", "--loss", "--help", "--version"}


@lru_cache
def known_flags() -> set[str]:
    """All flags that a command's help lists."""
    found = set(ALIASES)
    for arguments in HELPS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
            parse_polyjax(arguments)
        flags = set(re.findall(r"(?<![\w-])(--[a-z][\w-]*(?:\.[a-z][\w-]*)*)", printed.getvalue()))
        found |= flags | {re.sub(r"--((?:\w+\.)?)no-", r"--\1", flag) for flag in flags}
    return found


@pytest.mark.parametrize("page", **named(SHOWN))
def test_every_flag_that_a_page_names_exists(page, workplace):
    """Those in backticks alone, as ``--batch.chunk``; whole commands are parsed by another test."""
    text = page.read_text()
    if page.name == "from-parlai.md":
        text = re.sub(r"^\| `-.*?\|", "", text, flags=re.MULTILINE)  # the first column has ParlAI's flags
    found = re.findall(r"`(--[^`]+)`", text)
    flags = {flag.rstrip(".") for text in found for flag in FLAG.findall(text.split('"')[0])}
    beside = {"--index", "--kind", "--small"}  # of benchmarks, named without their command
    assert flags - beside <= known_flags()


# Links


def slug(heading: str) -> str:
    """The anchor that Markdown makes of a heading."""
    text = re.sub(r"[`*]|\{.*\}", "", heading).strip().lower()
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", text))


def drawn() -> set[str]:
    """The pictures that docs/figures.py makes, which are not in the repository."""
    tree = ast.parse((ROOT / "docs" / "figures.py").read_text())
    (pictures,) = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "drawings"
    )
    assert isinstance(pictures, ast.Dict)
    return {f"{ast.literal_eval(key)}.svg" for key in pictures.keys if key is not None}


def missing_links(page: Path) -> list[str]:
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        if path.suffix == ".svg" and path.name in drawn():
            continue
        if (
            path.suffix == ".ipynb" and path.parent.name == "notebooks"
        ):  # a copy with outputs, made by make docs
            path = ROOT / "notebooks" / path.name
        if not path.exists():
            missing.append(target)
        elif anchor and anchor not in map(slug, re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)):
            missing.append(target)
    return missing


@pytest.mark.parametrize("page", **named(EVERYTHING))
def test_links_pictures_and_anchors_are_there(page):
    assert missing_links(page) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A title\n\n[a](page.md#a-title) [b](page.md#another) [c](none.md) [d](figures/tri.svg)"
    )
    assert missing_links(page) == ["page.md#another", "none.md", "figures/tri.svg"]


@pytest.mark.parametrize("page", **named([README, ROOT / "CONTRIBUTING.md", *DOCS]))
def test_files_that_a_page_names_exist(page):
    """As `benchmarks/scoring.py`, `tests/laws` or `experiments/README.md`, in backticks."""
    for path in re.findall(
        r"`((?:benchmarks|tests|experiments|notebooks|docs|polyjax)/[\w./]+)`", page.read_text()
    ):
        assert (ROOT / path).exists(), path


def toctree(page: Path) -> list[Path]:
    """The pages that a page lists, in order, without a suffix."""
    (entries,) = blocks(page, "{toctree}") or [""]
    return [(page.parent / line).resolve() for line in entries.splitlines() if line and line[0] != ":"]


def test_the_site_lists_every_page_once():
    """From the start page every page is reached, by one way."""
    listed, waiting = [], [ROOT / "docs" / "index"]
    while waiting:
        listed.append(waiting.pop())
        if (page := listed[-1].parent / f"{listed[-1].name}.md").exists():
            waiting += toctree(page)
    notebooks = [ROOT / "docs" / "notebooks" / path.stem for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert sorted(listed) == sorted(
        [*(page.parent / page.name.removesuffix(".md") for page in DOCS), *notebooks]
    )


# The reference


def faces() -> dict[str, list[str]]:
    """The packages that list names for others, with those names."""
    found = {}
    for path in sorted((ROOT / "polyjax").rglob("__init__.py")):
        name = ".".join(path.relative_to(ROOT).parent.parts)
        if names := getattr(importlib.import_module(name), "__all__", ()):
            found[name] = list(names)
    return found


FACES = faces()


def test_the_reference_has_a_page_for_each_face_and_none_for_anything_else():
    directives = {}
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for name in re.findall(r"^\.\. face:: (\S+)$", page.read_text(), re.MULTILINE):
            assert name not in directives, f"{name} is documented twice"
            directives[name] = page
    assert set(directives) == set(FACES)
    for name, page in directives.items():
        assert page.read_text().splitlines()[0] == f"# {name}"


def described(face: str, name: str) -> bool:
    """Whether a name of a face has a docstring of its own, where it is defined."""
    value = inspect.unwrap(getattr(importlib.import_module(face), name))  # of a cached function
    if inspect.isclass(value) or inspect.isfunction(value):
        return bool(value.__doc__) and not value.__doc__.startswith(f"{name}(")  # what dataclass writes
    return any(name in constants(path) for path in (ROOT / "polyjax").rglob("*.py"))


@lru_cache
def constants(path: Path) -> frozenset[str]:
    """The names of a module's assignments that a text describes."""
    found = set()
    body = ast.parse(path.read_text()).body
    for node, after in zip(body, body[1:], strict=False):
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(found)


@pytest.mark.parametrize("face", FACES)
def test_every_name_of_a_face_is_described(face):
    """The site shows what has a docstring: without one a name would be missing from its page."""
    assert len(set(FACES[face])) == len(FACES[face])
    assert [name for name in FACES[face] if name != "__version__" and not described(face, name)] == []


@pytest.mark.parametrize("name", [name for name in polyjax.__all__ if callable(getattr(polyjax, name))])
def test_every_public_name_has_an_example(name):
    """Doctests run it."""
    assert "\n    >>> " in getattr(polyjax, name).__doc__


# What is said of the code


def test_names_that_moved_are_where_the_changelog_says():
    """Old modules are gone, new ones can be imported."""
    moved = [
        row for row in cells(CHANGELOG) if len(row) == 2 and re.match(r"`(polyjax|experiments)\.", row[0])
    ]
    assert len(moved) > 50
    for old, new in moved:
        for name in quoted(new):
            importlib.import_module(name)
        for name in quoted(old):
            assert not (ROOT / Path(*name.split("."))).with_suffix(".py").exists(), name


def test_contributing_lists_the_packages_in_their_order():
    stated = [name for row in cells(ROOT / "CONTRIBUTING.md") for name in quoted(row[0])]
    rooms = [name.rstrip("/").removesuffix(".py") for name in stated]
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    order = [floor[room] for room in rooms if room in floor]
    assert order == sorted(order)
    assert {path.stem for path in (ROOT / "polyjax").iterdir() if path.stem in floor} <= set(rooms)


def test_the_requests_of_the_server_are_those_that_are_documented():
    page = ROOT / "docs" / "howto" / "serving.md"
    stated = [code for row in cells(page) for code in quoted(row[0]) if re.match("(GET|POST|DELETE) /", code)]
    assert sorted(stated) == sorted(f"{known.method} {known.path}" for known in OPERATIONS)


def test_logged_metrics_are_those_that_are_documented():
    page = ROOT / "docs" / "distributed.md"
    table = page.read_text().split("## What a run logs")[1].split("\n\n`--profile")[0]
    keys = {key for row in table.splitlines() if row.startswith("| `") for key in quoted(row.split(" | ")[0])}
    logged = "".join(path.read_text() for path in (ROOT / "polyjax" / "train").glob("*.py"))
    assert len(keys) >= 11 and all(f'"{key}"' in logged for key in keys)


# The words


BANNED = {
    r"\bgo(es|ing)? on\b": "resume, continue",
    r"\b(is|are|there is) none\b": "the verb",
    r"\bways? out\b": "fix",
    r"\bby heart\b": "overfit",
    r"\bhidden (tokens?|words?)\b": "masked token",
    r"\btold\b|\btells\b": "says, shows",
    r"\bfigures?\b": "metric, number; plot",
    r"\bupdates?\b": "step",
    r"\b(building|buildings)\b": "build",
    r"\bdoes not do for\b": "out of device memory",
    r"\bbytes that are none\b": "not valid UTF-8",
    r"\bmistakes? of (yours|ours)\b": "invalid input, bug",
    r"\bpasses over the (training )?(rows|data)\b": "epochs",
    r"\bas the code is\b|\bof the code as it is\b": "a date",
    r"\blearn(ed|t) by\b": "trained on",
}
"""What STYLE.md's pairs say not to write, with what to write."""
IN_CODE = "|".join(
    (
        r"\bgo(es|ing) on\b",
        r"\bby heart\b",
        r"\bways? out\b",
        r"\bhidden (tokens?|words?)\b",
        r"\b(is told|it tells)\b",
        r"\bdoes not do for\b",
        r"\b(is|are) (?-i:none)\b",
    )
)
"""What no docstring, comment or message says; other words of BANNED have a meaning in code."""


def test_the_code_uses_the_words_of_the_field():
    for path in sorted((ROOT / "polyjax").rglob("*.py")):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING):
                found = re.search(IN_CODE, token.string, re.IGNORECASE)
                assert found is None, f"{path}:{token.start[0]}: {found and found[0]}"


MEANT = {"concepts.md": (r"one update of the parameters",), "CHANGELOG.md": ()}


@pytest.mark.parametrize("page", **named(EVERYTHING))
def test_a_page_uses_the_words_of_the_field(page):
    text = re.sub("|".join(MEANT.get(page.name, ())) or "(?!)", "", prose(page))
    found = {
        m[0]: better for words, better in BANNED.items() for m in re.finditer(words, text, re.IGNORECASE)
    }
    assert found == {}
