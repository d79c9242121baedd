"""Using a converted model: convert, export, chat over an index that is kept."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from conftest import FAST_COMPILATION
from polyjax import Ranker
from polyjax.cli import main as cli
from polyjax.cli.chat import ChatSession, default_index, load_index
from polyjax.cli.contexts import contexts_of
from polyjax.cli.flags import user_errors
from polyjax.cli.training_flags import parse_run
from polyjax.data.candidates import read_candidates
from polyjax.data.text import TextEncoder
from polyjax.errors import InputError
from polyjax.inference.scorer import TextScorer
from polyjax.interop.cards import load_scorer
from polyjax.interop.parlai.layout import ParlaiLayout
from polyjax.interop.parlai.warmup import ParlaiWarmup
from polyjax.recipes import start
from polyjax.retrieval.index.store import open_index
from polyjax.version import __version__

GOLDEN = Path(__file__).parent / "golden" / "parlai"
MODEL = GOLDEN / "poly_codes64_fp16_legacy"
CANDIDATES = MODEL / "fixed_cands.txt"


def test_a_closed_standard_input_is_one_line(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)  # as Python has it after `<&-`
    with pytest.raises(InputError) as error:
        next(contexts_of([]))
    assert error.value.argument == "context"


def polyjax(*arguments: str, monkeypatch, stdin: str = "") -> None:
    monkeypatch.setattr("sys.argv", ["polyjax", *arguments])
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    cli.main()


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        polyjax("convert", "parlai", str(MODEL / "model"), str(folder), monkeypatch=patch)
    return folder


def test_a_converted_model_scores_as_the_files_do(converted):
    context, texts = ["hi there", "hello", "what do you do?"], read_candidates(CANDIDATES)
    expected = Ranker.from_parlai(MODEL / "model").score(context, texts)
    np.testing.assert_array_equal(Ranker.load(converted).score(context, texts), expected)
    assert not list(converted.parent.glob("*.partial"))


def test_a_model_can_compute_in_another_dtype(converted):
    context, texts = ["hi there"], ["hello", "what do you do?"]
    exact = Ranker.load(converted).score(context, texts)
    half = Ranker.load(converted, dtype="bfloat16").score(context, texts)
    assert 0 < np.abs(half - exact).max() < 0.02 * np.abs(exact).max()


def test_converting_again_is_refused(converted, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        polyjax("convert", "parlai", str(MODEL / "model"), str(converted), monkeypatch=monkeypatch)
    assert stopped.value.code == 2
    assert "already exists" in capsys.readouterr().err


def test_training_goes_on_from_a_converted_model(converted, tmp_path, monkeypatch):
    config = parse_run(
        ["--init", str(converted), "--run-dir", str(tmp_path), "--train.steps", "1"], prog="run"
    )
    assert (config.arch, config.head.n_codes, config.text.layout) == ("poly", 64, ParlaiLayout())
    assert (config.optim.optimizer, config.optim.clip) == ("adamax", 0.1)
    assert config.own_optimizer == ParlaiWarmup(steps=3)
    asked = parse_run(["--init", str(converted), "--optim.warmup-steps", "5"], prog="run")
    assert (asked.own_optimizer, asked.optim.warmup_steps) == (None, 5), "who asks for another one gets it"
    assert config.encoder.dropout == 0.1
    tokenizer = start.make_tokenizer(config, None, lambda: iter(()))
    scorer = start.initial_scorer(config, start.encoder_config(config, None, tokenizer.vocab_size), None)
    context, texts = ["hi there"], read_candidates(CANDIDATES)[:3]
    scores = Ranker(TextScorer(scorer, TextEncoder(tokenizer, config.text))).score(context, texts)
    np.testing.assert_array_equal(scores, Ranker.load(converted).score(context, texts))
    for wrong in (["--arch", "bi"], ["--encoder", "tiny"], ["--tokenizer", "sentencepiece"]):
        with pytest.raises(InputError, match="leave"):
            parse_run(["--init", str(converted), *wrong], prog="run")


def test_export_holds_every_parameter_and_says_its_shape(converted, tmp_path, monkeypatch):
    polyjax("export", str(converted), str(tmp_path / "out"), monkeypatch=monkeypatch)
    arrays = load_file(tmp_path / "out" / "model.safetensors")
    scorer = TextScorer(*load_scorer(converted))
    assert {k: v.shape for k, v in arrays.items()} == {k: v.shape for k, v in scorer.parameters().items()}
    page = (tmp_path / "out" / "README.md").read_text()
    assert all(f"| `{name}` | {list(array.shape)} |" in page for name, array in arrays.items())


def test_chat_in_a_pipe_answers_line_by_line(converted, monkeypatch, capsys):
    arguments = ("chat", str(converted), "--candidates", str(CANDIDATES), "--json")
    said = "hi\n/top 3\nhow are you?\n/persona i like tea\n/persona\n\n/reset\nhi\n/quit\nnever read\n"
    polyjax(*arguments, monkeypatch=monkeypatch, stdin=said)
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert ["reply" in line for line in lines] == [True, False, True, False, False, False, False, True]
    assert len(lines[0]["top"]) == 1 and len(lines[2]["top"]) == 3
    scores = [best["score"] for best in lines[2]["top"]]
    assert scores == sorted(scores, reverse=True)
    assert lines[2]["reply"] != lines[0]["reply"], "a reply is not given twice"
    assert lines[-1]["reply"] == lines[0]["reply"], "after /reset nothing is remembered"
    assert "encoding" in printed.err and "there is no index yet" in printed.err

    polyjax(*arguments, monkeypatch=monkeypatch, stdin="hi\n")
    printed = capsys.readouterr()
    assert json.loads(printed.out)["reply"] == lines[0]["reply"]
    assert "from the index" in printed.err and "encoding" not in printed.err


def test_bytes_that_are_no_text_do_not_end_a_chat(converted, monkeypatch, capsys):
    arguments = ("chat", str(converted), "--candidates", str(CANDIDATES))
    polyjax(*arguments, monkeypatch=monkeypatch, stdin="caf\udce9\nok\n")
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_standard_input_in_utf_16(converted, monkeypatch, capsys):
    """As PowerShell pipes it."""
    arguments = ["rank", str(converted), "--candidates", str(CANDIDATES), "--json"]
    for encoding in ("utf-8", "utf-16", "utf-8-sig"):
        lines = io.TextIOWrapper(io.BufferedReader(io.BytesIO("hi\tthére\nwell\n".encode(encoding))), "utf-8")
        monkeypatch.setattr("sys.stdin", lines)
        monkeypatch.setattr("sys.argv", ["polyjax", *arguments])
        cli.main()
        found = [json.loads(line)["context"] for line in capsys.readouterr().out.splitlines()]
        assert found == [["hi", "thére"], ["well"]]


def test_replies_are_the_rankers_best(converted):
    texts = read_candidates(CANDIDATES)
    ranker = Ranker.load(converted)
    session = ChatSession(ranker.index(texts))
    first = session.reply("hi", top=4)
    expected = ranker.rank(["hi"], texts)
    assert first.texts == [r.text for r in expected[:4]]
    np.testing.assert_allclose(first.scores, [r.score for r in expected[:4]], atol=1e-5)
    second = session.reply("ok", top=2)
    fresh = [r.text for r in ranker.rank(["hi", first.texts[0], "ok"], texts) if r.text != first.texts[0]]
    assert second.texts == fresh[:2]
    session.reset()
    session.persona.append("i am a nurse")
    with_persona = ranker.rank(["your persona: i am a nurse\nhi"], texts)
    assert session.reply("hi").texts == [with_persona[0].text]


def test_an_index_whose_candidates_were_all_removed_has_no_reply(converted):
    index = Ranker.load(converted).index(["one", "two"])
    assert index.remove(ids=[0, 1]) == 2
    with pytest.raises(InputError) as error:
        ChatSession(index).reply("hi")
    assert (error.value.argument, error.value.fix) == ("index", "add some")


def test_an_index_is_rebuilt_when_anything_changed(converted, tmp_path):
    ranker = Ranker.load(converted)
    file, folder, said = tmp_path / "candidates.txt", tmp_path / "index", []
    file.write_text("one\ntwo words\n")
    load_index(ranker, file, folder, said.append)
    load_index(ranker, file, folder, said.append)
    file.write_text("one\ntwo words\nthree\n")
    assert len(load_index(ranker, file, folder, said.append)) == 3
    other = Ranker.from_parlai(GOLDEN / "bi_shared_max_trained" / "model")
    load_index(other, file, folder, said.append)
    (folder / "manifest.json").write_text("broken")
    load_index(other, file, folder, said.append)
    expected = ["no index yet", "from the index", "other candidates", "another model", "is broken"]
    assert len(said) == len(expected)
    assert all(part in line for part, line in zip(expected, said, strict=True))


def test_an_index_of_one_s_own_is_not_replaced_by_talking(converted, tmp_path, monkeypatch, capsys):
    file, folder = tmp_path / "candidates.txt", tmp_path / "index"
    file.write_text("one\ntwo words\n")
    arguments = ("chat", str(converted), "--candidates", str(file), "--index", str(folder))
    polyjax(*arguments, monkeypatch=monkeypatch, stdin="hi\n")
    (tmp_path / "more.txt").write_text("three\n")
    add = ("index", "add", str(converted), str(tmp_path / "more.txt"), str(folder))
    polyjax(*add, monkeypatch=monkeypatch)
    with pytest.raises(SystemExit) as stopped:
        polyjax(*arguments, monkeypatch=monkeypatch, stdin="hi\n")
    said = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 2
    assert "has been added to or removed from since it was built; leave out --candidates" in said
    assert len(open_index(folder)) == 3
    monkeypatch.setattr("sys.argv", ["polyjax"])
    with pytest.raises(SystemExit):
        polyjax(
            "chat", str(converted), "--index", str(folder), "--dtype", "bfloat16", monkeypatch=monkeypatch
        )
    assert "computed in float32, and the model computes in bfloat16" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_long_conversation_compiles_nothing(converted):
    """Each reply excludes what was said, which is more with every turn."""
    index = Ranker.load(converted).index([f"reply number {i}" for i in range(200)])
    session = ChatSession(index)
    session.compile()
    before = index.compilations
    replies = [session.reply(f"{i}").texts[0] for i in range(40)]
    assert len(set(replies)) == 40, "and none is said twice"
    assert index.compilations - before <= 1, "once, where 32 were said already"


def test_an_index_encoded_on_many_devices_is_that_of_one(converted, tmp_path, monkeypatch, capsys):
    file, vectors = tmp_path / "candidates.txt", []
    file.write_text("\n".join(f"candidate number {i} " + "and on " * (i % 7) for i in range(20)))
    for mesh in ("data=1", "data=8"):
        folder = tmp_path / mesh
        polyjax(
            "index", "build", str(converted), str(file), str(folder), "--mesh", mesh, monkeypatch=monkeypatch
        )
        (segment,) = open_index(folder).segments
        vectors.append(np.asarray(segment.vectors))
    assert "20 candidates" in " ".join(capsys.readouterr().out.split())
    np.testing.assert_allclose(*vectors, rtol=0, atol=1e-5)
    with pytest.raises(SystemExit):
        polyjax("index", "build", str(converted), str(file), "x", "--mesh", "data=9", monkeypatch=monkeypatch)
    assert "data=9" in capsys.readouterr().err


def test_an_index_is_replaced_only_where_it_is_asked_for(converted, tmp_path, monkeypatch, capsys):
    file, other, folder = tmp_path / "some.txt", tmp_path / "other.txt", tmp_path / "i"
    file.write_text("one\ntwo\nthree\n")
    other.write_text("four\nfive\n")

    def index(name, *arguments):
        polyjax("index", name, *map(str, arguments), monkeypatch=monkeypatch)

    index("build", converted, file, folder)
    index("build", converted, file, folder)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        index("build", converted, other, folder)
    said = " ".join(capsys.readouterr().err.split())
    assert "the index holds other candidates; set --replace" in said
    with pytest.raises(SystemExit):
        index("build", converted, file, folder, "--dtype", "int8")
    assert "the index keeps vectors in float32; set --replace" in " ".join(capsys.readouterr().err.split())
    index("add", converted, other, folder)
    with pytest.raises(SystemExit):
        index("build", converted, file, folder)
    assert "has been added to or removed from" in " ".join(capsys.readouterr().err.split())
    assert len(open_index(folder)) == 5
    index("build", converted, other, folder, "--replace")
    assert [text for _, text in open_index(folder).items()] == ["four", "five"]


def test_exhausted_memory_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped, user_errors():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.\nmore")
    printed = capsys.readouterr().err
    assert (
        stopped.value.code == 2 and "--mesh" in printed and "more" not in printed.replace("more devices", "")
    )
    with pytest.raises(jax.errors.JaxRuntimeError), user_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_files_of_one_name_have_their_own_index(tmp_path):
    places = {default_index(tmp_path, tmp_path / folder / "replies.txt") for folder in "ab"}
    assert len(places) == 2 and all(place.name.startswith("replies.txt-") for place in places)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chatt"], "got 'chatt'; did you mean chat? See polyjax --help"),
        ([], "got none; see polyjax --help"),
        (
            ["index", "bild"],
            "index: expected a command (build, add, remove, compact, info), got 'bild'; did you mean build?",
        ),
        (
            ["index", "build", "x", "y", "z", "--dtpye", "int8"],
            "did you mean --dtype? See polyjax index build",
        ),
        (["index", "info", "nowhere"], "nowhere: there is no index yet; build one"),
        (["index", "remove", "nowhere"], "give what to remove: either"),
        (["chat", "x"], "give the replies to choose from:"),
        (["chat", "x", "--candidats", "y"], "chat: unrecognized options: --candidats; did you mean --cand"),
        (["chat", "x", "--candidates", "y", "--topp", "3"], "unrecognized options: --topp; did you mean"),
        (["convert", "parlai", "x"], "convert: missing: OUT; see polyjax convert --help"),
        (["rank", "--top", "3"], "rank: missing: MODEL, --candidates PATH; see polyjax rank --help"),
        (
            ["rank", "--candidates", "x", "--context", "hi", "there"],
            "missing: MODEL (the word 'there', after",
        ),
        (["search", "--context", "hi", "a", "b"], "search: missing: MODEL (the word 'a', after --context"),
        (["search", "minilm", "--context", "hi"], "search: missing: INDEX (the word 'hi', after --context"),
        (["rank", "x", "--candidats", "y"], "is --candidats meant to be --candidates? See polyjax rank"),
        (["convert", "parlai", str(MODEL), "out"], f"{MODEL}: expected the model file in this folder, such"),
        (
            ["chat", str(CANDIDATES), "--candidates", "y"],
            f"{CANDIDATES}: not a directory; name the directory of a run",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        polyjax(*arguments, monkeypatch=monkeypatch)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_help_and_version(monkeypatch, capsys):
    polyjax("--version", monkeypatch=monkeypatch)
    polyjax("--help", monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    assert printed.count(__version__) == 2 and all(name in printed for name in cli.COMMANDS)


def test_a_folder_that_is_no_index_is_left_alone(converted, tmp_path):
    ranker = Ranker.load(converted)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for place in (tmp_path / "mine", tmp_path / "file"):
        with pytest.raises(InputError) as error:
            load_index(ranker, CANDIDATES, place, lambda text: None)
        assert (error.value.argument, error.value.fix) == (str(place), "choose another folder")
    assert (tmp_path / "mine" / "notes").read_text() == (tmp_path / "file").read_text() == "precious"


def test_a_cross_encoder_cannot_chat(tmp_path):
    ranker = Ranker.from_parlai(GOLDEN / "cross_prelayernorm_mean" / "model")
    with pytest.raises(InputError, match="cross-encoder cannot encode candidates"):
        load_index(ranker, CANDIDATES, tmp_path / "index", print)


def test_unknown_commands_explain_themselves(converted, monkeypatch, capsys):
    arguments = ("chat", str(converted), "--candidates", str(CANDIDATES))
    polyjax(*arguments, monkeypatch=monkeypatch, stdin="/what\n/top none\n/top ²\n/top 99999999999\n")
    written = capsys.readouterr().out.splitlines()
    assert len(written) == 4
    assert all("; /top N" in line and line.startswith("unknown command /") for line in written)


def test_help_whose_reader_has_seen_enough():
    done = subprocess.run(
        f"{sys.executable} -m polyjax.cli.main index build --help | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "MODEL CANDIDATES INDEX" in done.stdout and "Traceback" not in done.stderr


def test_rank_and_search_print_lines_or_json(converted, tmp_path, monkeypatch, capsys):
    file, folder = tmp_path / "replies.txt", tmp_path / "index"
    file.write_text("one\ntwo words\nthree \N{GRINNING FACE}\n")
    polyjax("rank", str(converted), "--candidates", str(file), "--context", "hi", monkeypatch=monkeypatch)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert sorted(text for _, text in lines) == sorted(file.read_text().splitlines())
    assert [float(score) for score, _ in lines] == sorted((float(s) for s, _ in lines), reverse=True)
    polyjax("index", "build", str(converted), str(file), str(folder), monkeypatch=monkeypatch)
    capsys.readouterr()
    arguments = ["search", str(converted), str(folder), "--json", "--top", "2"]
    polyjax(*arguments, monkeypatch=monkeypatch, stdin="hi\n\nwell\tthere\n")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["context"] for row in rows] == [["hi"], ["well", "there"]]
    assert [found["text"] for found in rows[0]["results"]] == [text for _, text in lines[:2]]
    assert rows[0]["certified"] is True and all(len(row["results"]) == 2 for row in rows)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_output_that_lacks_a_character(converted, tmp_path, encoding):
    (tmp_path / "replies.txt").write_text("hi \N{GRINNING FACE}\n")
    command = [sys.executable, "-m", "polyjax", "rank", str(converted), "--candidates", "replies.txt"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "XLA_FLAGS": FAST_COMPILATION}
    for more in ([], ["--json"]):
        done = subprocess.run(
            [*command, "--context", "you", *more], cwd=tmp_path, env=environment, capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode()
        text = done.stdout.decode(encoding).strip()
        assert (
            json.loads(text)["results"][0]["text"] == "hi \N{GRINNING FACE}"
            if more
            else "\\U0001f600" in text
        )


def test_input_that_the_locale_cannot_decode_is_utf_8(converted, tmp_path):
    """In a process: it is about the encoding of standard input."""
    (tmp_path / "replies.txt").write_text("hi\nno\n")
    command = [
        sys.executable,
        "-m",
        "polyjax",
        "rank",
        str(converted),
        "--candidates",
        "replies.txt",
        "--json",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "XLA_FLAGS": FAST_COMPILATION}
    said = "h\N{LATIN SMALL LETTER E WITH ACUTE}\n".encode() + b"\xe9\n"
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, input=said)
    assert done.returncode == 0, done.stderr.decode()
    contexts = [json.loads(line)["context"] for line in done.stdout.splitlines()]
    assert contexts == [["h\N{LATIN SMALL LETTER E WITH ACUTE}"], ["\N{REPLACEMENT CHARACTER}"]]
