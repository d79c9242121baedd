"""Errors are data: fields that a program reads, worded once for Python callers and command lines."""

import ast
import copy
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polyjax import PolyConfig
from polyjax.cli.flags import RENAMED, command_of, flag_of
from polyjax.cli.training_flags import parse_run
from polyjax.config import from_json
from polyjax.data.corpora.packing import PretrainBatchConfig
from polyjax.data.corpora.reddit import RedditConfig
from polyjax.data.corpora.sources import files_of
from polyjax.data.tasks import convai2
from polyjax.data.tasks.jsonl import OwnDataConfig
from polyjax.data.tasks.jsonl import parse as parse_rows
from polyjax.data.tasks.source import MissingFile, OfficialFile, find
from polyjax.data.text import TextConfig
from polyjax.errors import InputError, shown
from polyjax.interop.export import export_safetensors
from polyjax.interop.torch_file import read_torch_file

ROOT = Path(__file__).parents[1]
SOURCES = [path for room in ("polyjax", "experiments", "benchmarks") for path in (ROOT / room).rglob("*.py")]


# Fields


@pytest.mark.parametrize("fields", [{}, {"fix": "do something else"}, {"is_argument": False}])
def test_an_error_says_what_was_wrong_and_not_only_where(fields):
    with pytest.raises(TypeError, match="expected, got or problem"):
        InputError("a sentence that says everything", **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"expected": "at least 1"}, "steps: expected at least 1"),
        ({"got": None}, "steps: got None"),
        ({"problem": "is not a number"}, "steps: is not a number"),
        ({"problem": "is odd", "expected": "2 or 4", "got": 3}, "steps: is odd, expected 2 or 4, got 3"),
        ({"got": shown("nothing"), "fix": "set `train.steps`"}, "steps: got nothing; set train.steps"),
        ({"got": "x" * 999}, f"steps: got '{'x' * 199}..."),
    ],
)
def test_a_message_is_made_of_the_fields(fields, message):
    error = InputError("steps", **fields)
    assert str(error) == message
    assert all(getattr(error, name) == value for name, value in fields.items())
    assert error.has_value == ("got" in fields)


def test_an_error_from_a_row_gets_its_place_and_keeps_its_fields():
    found = InputError("scores", expected="two numbers", got=[1], is_argument=False).at("a.jsonl:3")
    assert (found.argument, found.expected, found.got) == ("a.jsonl:3: scores", "two numbers", [1])
    assert str(InputError.in_row(problem="the text is empty").at("a.csv:7")) == "a.csv:7: the text is empty"
    within = InputError("head.n_codes", expected="at least 1", got=0).at("model.json")
    assert within.worded(flag_of) == "model.json: head.n_codes: expected at least 1, got 0", "not a flag"


class Closed:
    """A value that does not leave its process."""

    def __reduce__(self):
        raise TypeError("stays here")

    def __repr__(self):
        return "a closed thing"


@pytest.mark.parametrize("carry", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("kind", [InputError, MissingFile])
def test_an_error_comes_back_whole_from_a_worker_process(kind, carry):
    error = kind(
        "rows", expected="a list of `rows`", got=Closed(), fix="see `task.source`", is_argument=False
    )
    found = carry(error)
    assert type(found) is kind and str(found) == str(error) and found.args == error.args
    assert found.worded(flag_of) == "rows: expected a list of --rows, got a closed thing; see --data-dir"
    assert (found.argument, found.expected, found.fix) == (error.argument, error.expected, error.fix)
    assert not found.is_argument and found.problem is None
    nothing = carry(kind("rows", problem="none"))
    assert not nothing.has_value and nothing.is_argument


# Of the whole tree


def raised(path: Path) -> Iterator[ast.Call]:
    """The calls of a file that make an InputError."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "InputError" or re.fullmatch(r"(InputError|MissingFile)\.(in_file|in_row)", name):
                yield node


def test_every_error_of_the_tree_is_data():
    """Of branches that no test takes as well: a free text has none of these fields."""
    calls = [(path, call) for path in SOURCES for call in raised(path)]
    assert len(calls) > 300
    for path, call in calls:
        given = {keyword.arg for keyword in call.keywords}
        assert given & {"expected", "got", "problem", None}, f"{path}:{call.lineno}"


PYTHON_ONLY = [path for path in SOURCES if path.relative_to(ROOT).parts[1] not in ("cli", "serve")]


OTHERS = {"--force-reinstall", "--no-deps", "--preload"}
"""Flags of pip and gunicorn, in commands to run."""


def test_no_text_of_the_library_names_a_flag():
    """It names arguments, which the command line turns into its flags."""
    for path in PYTHON_ONLY:
        for call in raised(path):
            for part in ast.walk(call):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    flags = re.findall(r"(?<![\w-])--[a-z][\w-]*", part.value)
                    assert set(flags) <= OTHERS, f"{path}:{part.lineno}: {part.value}"


def test_flags_of_other_names_are_flags():
    """The names that a library's text uses are turned into flags that exist."""
    from test_docs import known_flags

    assert set(RENAMED.values()) <= known_flags()
    assert not {f"--{name.replace('_', '-')}" for name in RENAMED} & known_flags()


# The wording


def made(call: Callable[[], object]) -> InputError:
    with pytest.raises(InputError) as caught:
        call()
    return caught.value


def messages(folder: Path) -> list[InputError]:
    """Errors of every kind, as the library raises them."""
    rows = {
        "one.jsonl": '{"context": "a", "label": "b"}\n{"context": "a", "labels": "b"}\n',
        "two.jsonl": '{"context": "a"}\n[1]\n{"context": "a"}\n',
        "cells.csv": "context,label\na,b,c\n",
        "header.csv": "context,label,Candidates\n",
        "broken.json": '[{"context": "a", "label": "b"}\n',
    }
    for name, content in rows.items():
        (folder / name).write_text(content)
    (folder / "out").mkdir()
    (folder / "weights").write_bytes(b"hello")
    head = {"type": "PolyConfig", "n_codes": 0}
    return [
        made(lambda: PolyConfig(n_codes=0)),
        made(lambda: TextConfig(max_turns=0)),
        made(lambda: OwnDataConfig(train=folder / "a.jsonl", n_candidates=1)),
        made(lambda: OwnDataConfig(train=folder / "a.jsonl", valid_fraction=0.6, test_fraction=0.5)),
        made(lambda: PretrainBatchConfig(chunk=9000)),
        made(lambda: PretrainBatchConfig(replaced=0.9, random=0.2)),
        made(lambda: RedditConfig(min_chars=9, max_chars=8)),
        made(lambda: files_of("pears:x")),
        made(lambda: from_json(PolyConfig, head, source="model.json")),
        *(made(lambda name=name: parse_rows(folder / name)) for name in rows),
        made(lambda: find(folder, OfficialFile("train.txt"), convai2.SOURCE)),
        made(lambda: export_safetensors(folder, folder / "out")),
        made(lambda: read_torch_file(folder / "weights")),
        made(lambda: parse_run(["--train.step", "10"], prog="polyjax train")),
        made(lambda: parse_run(["--train.epochs", "2"], prog="polyjax train")),
        made(lambda: command_of(["trane"], ["train", "rank"], "polyjax")),
    ]


def test_the_wording(tmp_path):
    """For a Python caller, then for a command line where that differs."""
    lines = []
    for error in messages(tmp_path):
        for message in dict.fromkeys((error.worded(), error.worded(flag_of))):
            lines.append(message.replace(f"{tmp_path}/", ""))
    assert "\n".join(lines) + "\n" == WORDING


WORDING = """\
head.n_codes: expected at least 1 (the paper uses 16, 64 and 360), got 0
--head.n-codes: expected at least 1 (the paper uses 16, 64 and 360), got 0
text.max_turns: expected at least 1, got 0
--text.max-turns: expected at least 1, got 0
task.n_candidates: expected at least 2, got 1
--task.n-candidates: expected at least 2, got 1
task.valid_fraction: with a task.test_fraction of 0.5 it leaves nothing to train on, got 0.6
--task.valid-fraction: with a --task.test-fraction of 0.5 it leaves nothing to train on, got 0.6
batch.chunk: expected at most the 4096 tokens of batch.tokens, got 9000
--batch.chunk: expected at most the 4096 tokens of --batch.tokens, got 9000
batch.replaced: with the 0.2 of batch.random it is more than 1, got 0.9; lower one of them
--batch.replaced: with the 0.2 of --batch.random it is more than 1, got 0.9; lower one of them
corpus.reddit.min_chars: expected at most the 8 of corpus.reddit.max_chars, got 9
--corpus.reddit.min-chars: expected at most the 8 of --corpus.reddit.max-chars, got 9
corpus.files: expected pairs:FILES or text:FILES or reddit:FILES, where FILES is a file or a pattern \
such as 'data/*.jsonl.gz', got 'pears:x'
--corpus: expected pairs:FILES or text:FILES or reddit:FILES, where FILES is a file or a pattern such \
as 'data/*.jsonl.gz', got 'pears:x'
model.json: head.n_codes: expected at least 1 (the paper uses 16, 64 and 360), got 0
one.jsonl:2: the key 'label' is missing; if 'labels' is meant, rename it to 'label'
two.jsonl: 3 bad lines
  lines 1, 3: the key 'label' is missing
  line 2: expected an object with a context and a label, got list
cells.csv:2: expected 2 columns, got 3
header.csv:1: the column 'Candidates' is nearly 'candidates'; rename it to that, or to something else
broken.json:2: the list does not end; is the file cut short?
train.txt: the file is missing; it is part of the ConvAI2 data set, see ParlAI's task convai2 \
(convai2_fix_723.tgz), CC BY 4.0; put it there, or name its folder: task.source
train.txt: the file is missing; it is part of the ConvAI2 data set, see ParlAI's task convai2 \
(convai2_fix_723.tgz), CC BY 4.0; put it there, or name its folder: --data-dir
out: the folder already exists; choose another folder, or remove this one
weights: cannot be read as a torch file: expected a file written by torch.save, got something else
polyjax train: unrecognized options: --train.step; did you mean --train.steps or \
--train.save-every-steps or --train.validate-every-steps? See polyjax train --help
polyjax train: --train.epochs: expected 0 where --train.steps is given (280), got 2.0; set \
--train.steps to 0 to count in epochs; see polyjax train --help
polyjax: expected a command (train, rank), got 'trane'; did you mean train? See polyjax --help
"""
