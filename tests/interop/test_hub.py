"""Models of the hub by name: a cache in a temporary folder; no test touches the network."""

import io
import json
import shutil
import socket
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from conftest import golden_encoder
from polyjax import InputError, Ranker
from polyjax.cli import evaluate, serve
from polyjax.cli import main as cli
from polyjax.cli.training_flags import parse_run
from polyjax.interop import hub
from polyjax.interop.hub import hub_name, local_name, model_folder, pinned
from polyjax.interop.pretrained import origin_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "org/tiny-mean"
TEXTS = ["a text", "another"]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No connection can be made, and the hub's cache is empty."""

    def refused(*_, **__):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.chdir(tmp_path)  # where no folder has a model's name
    (tmp_path / "hub").mkdir()
    taken = huggingface_hub.snapshot_download

    def in_cache(model, **options):
        return taken(model, cache_dir=tmp_path / "hub", **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", in_cache)
    return tmp_path / "hub"


@pytest.fixture
def cached(offline) -> Path:
    """A golden folder, in the cache under a name, at a commit."""
    folder, _ = golden_encoder("st_bert_prompts")
    place = offline / "models--org--tiny-mean"
    shutil.copytree(folder, place / "snapshots" / COMMIT, copy_function=shutil.copyfile)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    return place / "snapshots" / COMMIT


def test_names_and_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_name("org/model") == ("org/model", None)
    assert hub_name("org/model@v1.0") == ("org/model", "v1.0")
    for folder in ("model", "./org/model", "/org/model", "runs/mine", "a/b/c", Path("org/model"), "../x"):
        assert hub_name(folder) is None
        assert model_folder(folder) == Path(folder) and origin_of(folder) is None
    (tmp_path / "org").mkdir()
    assert hub_name("org/model") is None, "a folder's name that is misspelt is no model's"
    assert local_name("BAAI/bge@abc") == "bge" and local_name("runs/mine") == "mine"


def test_a_model_in_the_cache_is_loaded_without_the_network(cached):
    folder, _ = golden_encoder("st_bert_prompts")
    ranker = Ranker.load(MODEL)
    np.testing.assert_array_equal(ranker.embed(TEXTS), Ranker.load(folder).embed(TEXTS))
    assert ranker.origin == f"{MODEL}@{COMMIT}" and Ranker.load(folder).origin is None
    assert Ranker.load(f"{MODEL}@{COMMIT}").origin == f"{MODEL}@{COMMIT}"
    np.testing.assert_array_equal(Ranker.from_encoder(MODEL).embed(TEXTS), ranker.embed(TEXTS))


def test_a_model_that_is_nowhere_is_one_line(offline, monkeypatch):
    def away(model, **options):
        raise OSError(f"cannot reach the hub for {model}\nmore of it")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", away)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # a machine may set it
    with pytest.raises(InputError) as error:
        Ranker.load("org/none")
    assert error.value.argument == "org/none" and "\n" not in str(error.value)
    failed = "asking the hub failed (cannot reach the hub for org/none)"
    assert error.value.problem == f"neither a folder nor in the hub's cache, and {failed}"
    with pytest.raises(InputError) as error:
        pinned("org/none")
    assert (error.value.argument, error.value.got) == ("encoder", "org/none")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("OfflineModeIsEnabled", "HF_HUB_OFFLINE"),
        ("RepositoryNotFoundError", "neither a folder nor a model of the hub"),
        ("RevisionNotFoundError", "no revision 'v9'"),
        ("GatedRepoError", "hf auth login"),
        ("HFValidationError", "nor a name of the hub"),
    ],
)
def test_why_the_hub_gives_no_model_is_one_line(offline, monkeypatch, capsys, kind, words):
    raised = type(kind, (getattr(huggingface_hub.errors, kind),), {"__init__": lambda *_: None})

    def refused(*_, **__):
        raise raised()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", kind == "OfflineModeIsEnabled")
    with pytest.raises(SystemExit) as stopped:
        command("doctor", "org/none@v9", monkeypatch=monkeypatch)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("problem: org/none@v9: ") and words in line


def test_a_cache_without_weights_is_completed_from_the_hub(cached, monkeypatch):
    asked = []
    whole = golden_encoder("st_bert_prompts")[0]
    (cached / "model.safetensors").unlink()
    taken = huggingface_hub.snapshot_download

    def download(model, *, local_files_only=False, **options):
        asked.append((model, local_files_only, options["revision"]))
        if local_files_only:
            return taken(model, local_files_only=True, **options)
        shutil.copyfile(whole / "model.safetensors", cached / "model.safetensors")
        return str(cached)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert model_folder(MODEL) == cached
    assert asked == [(MODEL, True, None), (MODEL, False, None)]


def test_a_run_keeps_the_commit_and_its_page_names_it(cached, tmp_path, monkeypatch):
    config = parse_run(["--arch", "bi", "--encoder", MODEL, "--run-dir", str(tmp_path / "run")], prog="run")
    assert config.encoder.name == f"{MODEL}@{COMMIT}" == pinned(MODEL)
    assert config.text.context_prompt, "the folder's settings are honoured"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"encoder": {"name": config.encoder.name}}))
    (tmp_path / "run" / "model.json").write_text("{}")
    assert origin_of(tmp_path / "run") == config.encoder.name
    Ranker.load(MODEL).save_pretrained(tmp_path / "out")
    page = (tmp_path / "out" / "README.md").read_text()
    assert f"base_model: {MODEL}\n" in page and COMMIT in page


def test_push_to_hub_uploads_what_save_pretrained_writes(cached, monkeypatch):
    calls = []

    def upload(library, model, folder):
        assert library is huggingface_hub
        calls.append(
            (model, sorted(path.name for path in folder.iterdir()), Ranker.load(folder).embed(TEXTS))
        )

    monkeypatch.setattr(hub, "upload", upload)
    ranker = Ranker.load(MODEL)
    ranker.push_to_hub("me/mine")
    ((model, names, vectors),) = calls
    assert model == "me/mine" and {"modules.json", "README.md", "model.safetensors"} <= set(names)
    np.testing.assert_allclose(vectors, ranker.embed(TEXTS), rtol=0, atol=1e-5)
    with pytest.raises(InputError) as error:
        ranker.push_to_hub("no name")
    assert (error.value.argument, error.value.got) == ("model", "no name") and len(calls) == 1


def test_the_upload_is_one_commit_of_a_repository_that_is_made(tmp_path, monkeypatch):
    calls = []
    for name in ("create_repo", "upload_folder"):

        def call(self, *arguments, name=name, **options):
            calls.append((name, arguments, options))

        monkeypatch.setattr(huggingface_hub.HfApi, name, call)
    hub.upload(huggingface_hub, "me/mine", tmp_path)
    assert [name for name, _, _ in calls] == ["create_repo", "upload_folder"]
    assert calls[0][1:] == (("me/mine",), {"exist_ok": True})
    assert (calls[1][2]["repo_id"], calls[1][2]["folder_path"]) == ("me/mine", tmp_path)


def test_without_the_library_a_name_says_what_to_install_and_folders_load(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    folder, _ = golden_encoder("st_bert_prompts")
    assert Ranker.load(folder).embed(TEXTS).shape == (2, 32)
    with pytest.raises(InputError) as error:
        Ranker.load("org/model")
    assert error.value.argument == "org/model" and "polyjax[hub]" in error.value.fix


ROWS = [{"context": f"say {word}", "candidates": [word, "tea", "milk"], "label": word} for word in "abcd"]


def command(*arguments: str, monkeypatch, stdin: str = "") -> None:
    monkeypatch.setattr("sys.argv", ["polyjax", *arguments])
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    cli.main()


@pytest.fixture
def texts_and_rows(tmp_path) -> tuple[str, str]:
    """A file of candidates and one of rows."""
    (tmp_path / "texts.txt").write_text("tea\nmilk\nwater with [SEP]\n")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(tmp_path / "texts.txt"), str(tmp_path / "rows.jsonl")


def test_commands_take_a_model_of_the_hub_as_they_take_a_folder(
    cached, texts_and_rows, tmp_path, monkeypatch, capsys
):
    texts, rows = texts_and_rows
    monkeypatch.setattr(evaluate, "restart_with_huge_pages", lambda: None)
    folder = shutil.copytree(golden_encoder("st_bert_prompts")[0], tmp_path / "st")

    def printed(*arguments: str, stdin: str = "") -> list[str]:
        command(*arguments, monkeypatch=monkeypatch, stdin=stdin)
        own = ("folder:", "examples/s")  # where it is, and how fast
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if not any(words in line for words in own)]

    for number, model in enumerate((MODEL, str(folder))):
        index, out = str(tmp_path / f"index-{number}"), str(tmp_path / f"mined-{number}.jsonl")
        data = ("--task", f"jsonl:{rows}")
        printed("index", "build", model, texts, index)
        replies = printed("chat", model, "--candidates", texts, "--json", stdin="a\n")
        printed("mine", model, *data, "--out", out, "--n-negatives", "1", "--rescore", model)
        found = [
            printed("doctor", model),
            printed("rank", model, "--candidates", texts, "--context", "milk", "--json"),
            printed("search", model, index, "--context", "milk", "--rerank", model, "--json", "--top", "2"),
            evaluated := printed("evaluate", model, *data),
            [json.loads(line)["top"] for line in replies],
            Path(out).read_text(),
        ]
        printed("export", "sentence-transformers", model, str(tmp_path / f"out-{number}"))
        if number == 0:
            expected = found
        assert f"rows test, {len(ROWS)} rows" in evaluated, "it was trained on none of them"
    assert found == expected and expected[0][-1] == "loads: yes"
    assert not (cached / "index").exists(), "nothing is written into the hub's cache"


def test_the_server_takes_a_model_of_the_hub_and_calls_it_by_its_name(cached, texts_and_rows, monkeypatch):
    apps = []

    def served(app, sock) -> int:
        sock.close()
        apps.append(app)
        return 0

    monkeypatch.setattr(serve, "serve", served)
    monkeypatch.setattr(serve, "bind", lambda host, port: socket.socket())
    monkeypatch.setattr(serve, "log_to", lambda file: None)
    with pytest.raises(SystemExit) as stopped:
        command(
            "serve",
            MODEL,
            "--candidates",
            texts_and_rows[0],
            "--rerank",
            MODEL,
            monkeypatch=monkeypatch,
        )
    assert stopped.value.code == 0
    service = apps[0].state.service
    assert service.name == MODEL and len(service.index) == 3 and not (cached / "index").exists()
    np.testing.assert_array_equal(service.model.ranker.embed(TEXTS), Ranker.load(MODEL).embed(TEXTS))
