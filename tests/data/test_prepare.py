"""Corpora on disk: readers, pieces, preparation that goes on, what is left out."""

import dataclasses
import gzip
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_token_store import Counting

from polyjax.data.corpora import identity, lines, prepare, store
from polyjax.data.corpora.corpus import Conversation, Pairs, tokenise
from polyjax.data.corpora.identity import content_hash
from polyjax.data.corpora.leakage import HeldOut
from polyjax.data.corpora.prepare import CorpusConfig, TaskPiece, corpus_identity, prepare_pieces
from polyjax.data.corpora.sources import find_pieces, is_held_out
from polyjax.data.corpora.store import check_split, tokens_of
from polyjax.data.rows import Rows
from polyjax.data.tasks.convai2 import ConvAI2Config
from polyjax.data.text import TextConfig
from polyjax.errors import InputError
from polyjax.types import Example


def rows(n):
    return [{"id": f"c{i}", "turns": [f"turn {j} of {i} é" for j in range(2 + i % 3)]} for i in range(n)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def read(tmp_path):
    def reader(source, size=10**9):
        pieces = find_pieces(source, size=size, folder=tmp_path / "parts")
        return [conversation for piece in pieces for conversation in piece.read()]

    return reader


@pytest.mark.parametrize("size", [1, 37, 200, 10**9])
def test_pieces_of_any_size_hold_each_line_once(tmp_path, size, read):
    path = write(tmp_path / "a.jsonl", rows(23))
    found = read(f"pairs:{path}", size)
    assert [(c.id, list(c.turns)) for c in found] == [(row["id"], row["turns"]) for row in rows(23)]


def test_pairs_of_a_context_and_an_answer(tmp_path, read):
    path = write(
        tmp_path / "a.jsonl",
        [
            {"context": ["a", " b  b "], "response": "c"},
            {"context": "a", "label": "d", "id": 7},
            {"context": "", "label": "d"},
        ],
    )
    found = read(f"pairs:{path}")
    assert [(c.turns, c.first_label) for c in found] == [(("a", "b b", "c"), 2), (("a", "d"), 1)]
    assert found[1].id == "7"


def test_documents_become_sentences(tmp_path, read):
    path = tmp_path / "a.txt"
    lines = [
        "One is here. Two follows!  Three?",
        "",
        json.dumps({"title": "T", "sentences": ["a b.", " c"]}),
        json.dumps({"title": "U", "paragraphs": ["It is. So it is.", "Next."]}),
        json.dumps({"text": "First. Second."}),
    ]
    path.write_text("\n".join(lines))
    assert [c.turns for c in read(f"text:{path}")] == [
        ("One is here.", "Two follows!", "Three?"),
        ("a b.", "c"),
        ("It is.", "So it is.", "Next."),
        ("First.", "Second."),
    ]


def test_compressed_files_and_patterns(tmp_path, read):
    import zstandard

    plain = "".join(json.dumps(row) + "\n" for row in rows(5)).encode()
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(plain)
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(plain))
    write(tmp_path / "c.jsonl", rows(5))
    assert len(read(f"pairs:{tmp_path}/*.jsonl*", 40)) == 15


@pytest.mark.parametrize("size", [1, 100, 10**9])
def test_a_compressed_file_is_cut_into_plain_ones_of_whole_lines(tmp_path, size, read):
    plain = "".join(json.dumps(row) + "\n" for row in rows(23))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain.encode()))
    pieces = find_pieces(f"pairs:{tmp_path}/a.jsonl.gz", size=size, folder=tmp_path / "parts")
    longest = max(len(json.dumps(row)) + 1 for row in rows(23))
    assert len(pieces) >= {1: 23, 100: len(plain) // (100 + longest), 10**9: 1}[size]
    assert len(pieces) <= {1: 23, 100: len(plain) // 100 + 1, 10**9: 1}[size]
    assert all(piece.end - piece.start < size + 200 for piece in pieces)
    found = [conversation for piece in pieces for conversation in piece.read()]
    assert [(c.id, list(c.turns)) for c in found] == [(row["id"], row["turns"]) for row in rows(23)]
    assert len({piece.name for piece in pieces}) == len(pieces)


def test_a_bad_line_of_a_compressed_file_is_named_by_the_file_and_its_byte(tmp_path, read):
    lines = [json.dumps(row).encode() + b"\n" for row in rows(23)]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join([*lines, b"{\n"])))
    at = sum(map(len, lines))
    with pytest.raises(InputError, match=rf"a\.jsonl\.gz, the line at byte {at}: expected"):
        read(f"pairs:{path}", 100)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a.jsonl:2: expected an object with turns"),
        ('{"turns": "a"}', "not a list of texts"),
        ('{"turns": ["\\ud800", "b"]}', "a.jsonl:2: "),
        ('{"id": "\\ud800", "turns": ["a", "b"]}', "a.jsonl:2: "),
        ('{"context": ["a"]}', "KeyError"),
        ("[1]", "a list"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message, read):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(rows(1)[0]) + "\n" + line + "\n")
    with pytest.raises(InputError, match=message):
        read(f"pairs:{path}")


@pytest.mark.parametrize(
    ("source", "message"),
    [("pears:x", "expected pairs:FILES or text:FILES or reddit:FILES"), ("pairs:nowhere*", "no such file")],
)
def test_sources_that_cannot_be(source, message, read):
    with pytest.raises(InputError, match=message):
        read(source)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: b"nothing of the kind"])
def test_a_damaged_archive_is_named(tmp_path, ending, damage, read):
    import zstandard

    compress = {".gz": gzip.compress, ".zst": zstandard.compress}[ending]
    plain = "".join(json.dumps(row) + "\n" for row in rows(500)).encode()
    path = tmp_path / f"a{ending}"
    path.write_bytes(damage(compress(plain)))
    with pytest.raises(InputError, match="cannot be read|expected an object with turns") as caught:
        read(f"pairs:{path}")
    assert caught.value.argument.startswith(str(path))


@pytest.fixture
def tokenizer_dir(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    Counting().save(folder)
    return folder


def same(one, other):
    for name in store.ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def corpus(tmp_path, n=300, **changes):
    path = write(tmp_path / "a.jsonl", rows(n))
    settings = {"files": (f"pairs:{path}",), "dir": tmp_path / "prepared", "held_out": 0.1}
    return CorpusConfig(**(settings | changes))


@pytest.mark.parametrize(
    ("rows", "held_out", "argument", "problem"),
    [
        ([{"context": ["well", str(i)], "label": "b"} for i in range(9)], 0.1, "corpus.held_out", "to train"),
        (
            [{"context": ["hi", str(i)], "label": "b"} for i in range(9)],
            0.1,
            "corpus.held_out",
            "to validate",
        ),
        ([{"id": str(i), "turns": ["a", "b"]} for i in range(9)], 0.001, "corpus.held_out", "to validate"),
        ([{"id": str(i), "turns": ["a"]} for i in range(9)], 0.1, "corpus.files", "no pair"),
        ([{"id": str(i), "turns": ["a", "b"]} for i in range(90)], 0.1, None, None),
    ],
)
def test_a_corpus_with_nothing_to_train_or_validate_on_is_refused(
    tmp_path, rows, held_out, argument, problem
):
    config = corpus(tmp_path, held_out=held_out)
    write(tmp_path / "a.jsonl", rows)
    pieces = prepare_pieces(config)
    if argument is None:
        check_split(config, pieces)
        return
    with pytest.raises(InputError) as error:
        check_split(config, pieces)
    assert error.value.argument == argument and problem in error.value.problem


def test_tokens_are_those_of_the_conversations(tmp_path, tokenizer_dir):
    config = corpus(tmp_path)
    found = tokens_of(config, Counting(), tokenizer_dir)
    assert isinstance(found.train.ids, np.memmap) and found.left_out == 0
    conversations = [Conversation(row["id"], tuple(row["turns"])) for row in rows(300)]
    for split, tokens in (("train", found.train), ("valid", found.valid)):
        chosen = [c for c in conversations if is_held_out(c.id, 0.1) == (split == "valid")]
        expected = tokenise(chosen, Counting())
        assert len(tokens.ids) == len(expected.ids) > 0
        one, other = (
            sorted(tuple(t.turn(i).tolist()) for i in range(len(t.turns) - 1)) for t in (tokens, expected)
        )
        assert one == other
        text = TextConfig(context_tokens=64, candidate_tokens=32)
        assert len(Pairs(tokens, text, Counting())) == sum(len(c.turns) - 1 for c in chosen)


def test_a_stopped_preparation_goes_on_and_pieces_change_nothing_but_the_order(
    tmp_path, tokenizer_dir, monkeypatch
):
    config = corpus(tmp_path, piece_mb=0.004)
    pieces = len(find_pieces(config.files[0], size=4000, folder=tmp_path / "parts"))
    assert pieces > 3
    made = []
    original = prepare._prepare

    def stopping(builder, config):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(builder)
        original(builder, config)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_prepare", stopping)
        with pytest.raises(KeyboardInterrupt):
            tokens_of(config, Counting(), tokenizer_dir)
    made.clear()
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_prepare", lambda *rest: (made.append(1), original(*rest)))
        with monkeypatch.context() as inner:
            inner.setattr(store, "_put_together", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                tokens_of(config, Counting(), tokenizer_dir)
        assert len(made) == pieces - 2
        found = tokens_of(config, Counting(), tokenizer_dir)
        again = tokens_of(config, Counting(), tokenizer_dir)
    assert len(made) == pieces - 2, "what is there is not made again"
    same(found.train, again.train)
    whole = tokens_of(corpus(tmp_path, dir=tmp_path / "other"), Counting(), tokenizer_dir)
    assert sorted(found.train.ids.tolist()) == sorted(whole.train.ids.tolist())
    assert not list((tmp_path / "prepared").rglob("piece-*.npy"))


def test_parts_of_compressed_files_are_removed_when_they_are_prepared(tmp_path, tokenizer_dir):
    plain = "".join(json.dumps(row) + "\n" for row in rows(300))
    path = tmp_path / "b.jsonl.gz"
    path.write_bytes(gzip.compress(plain.encode()))
    config = corpus(tmp_path, files=(f"pairs:{path}",), piece_mb=0.004)
    found = tokens_of(config, Counting(), tokenizer_dir)
    left = [file.name for file in (config.dir / "pretraining_parts").rglob("*") if file.is_file()]
    assert sorted(left) == ["contents.json", "done.json", "removed"]
    same(found.train, tokens_of(config, Counting(), tokenizer_dir).train)
    whole = tokens_of(corpus(tmp_path, dir=tmp_path / "other"), Counting(), tokenizer_dir)
    assert sorted(found.train.ids.tolist()) == sorted(whole.train.ids.tolist())


def test_parts_that_were_removed_are_laid_out_again_where_they_are_needed(tmp_path):
    path = tmp_path / "b.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows(300)).encode()))
    config = corpus(tmp_path, files=(f"pairs:{path}",), piece_mb=0.004)

    def texts():
        return sorted(c.turns for piece in prepare_pieces(config) for c in piece)

    first = texts()
    assert len(first) == 300
    shutil.rmtree(config.dir / "pretraining_piece")
    assert texts() == first


def test_a_folder_that_is_half_removed_is_laid_out_again(tmp_path, monkeypatch):
    """Killed while it is removed: what is left of it is not taken for the whole."""
    path = tmp_path / "b.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows(300)).encode()))
    config = corpus(tmp_path, files=(f"pairs:{path}",), piece_mb=0.004)
    prepare_pieces(config)
    shutil.rmtree(config.dir / "pretraining_piece")
    removed, remove = [], shutil.rmtree

    def dying(folder, **rest):
        if Path(folder).name.startswith("unpacked") and Path(folder).exists():
            (Path(folder) / "removed").unlink()
            removed.append(folder)
            raise KeyboardInterrupt
        remove(folder, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(lines.shutil, "rmtree", dying)
        with pytest.raises(KeyboardInterrupt):
            prepare_pieces(config)
    assert len(removed) == 1
    assert sum(1 for piece in prepare_pieces(config) for _ in piece) == 300


def test_a_corpus_is_known_by_what_it_holds(tmp_path, tokenizer_dir):
    config = corpus(tmp_path)
    path = tmp_path / "a.jsonl"
    found, known = tokens_of(config, Counting(), tokenizer_dir), corpus_identity(config)
    path.touch()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / "a.jsonl").write_bytes(path.read_bytes())
    elsewhere = dataclasses.replace(config, files=(f"pairs:{moved / 'a.jsonl'}",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_prepare", lambda *rest: pytest.fail("it is prepared already"))
        for same in (config, elsewhere):
            assert tokens_of(same, Counting(), tokenizer_dir).state == found.state
            assert corpus_identity(same) == known
    path.write_text(path.read_text().replace("turn 0 of 7", "turn 0 of 8"))
    assert corpus_identity(config) != known
    assert tokens_of(config, Counting(), tokenizer_dir).state != found.state


def test_a_file_is_hashed_once(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", rows(5))
    first = content_hash(str(path), tmp_path / "hashes")
    assert first == hashlib.sha256(path.read_bytes()).hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(identity.hashlib, "sha256", lambda: pytest.fail("it is remembered"))
        assert content_hash(str(path), tmp_path / "hashes") == first
    (tmp_path / "hashes" / identity.REMEMBERED).write_text('{"broken": 1}')
    assert content_hash(str(path), tmp_path / "hashes") == first


def test_rows_of_a_dialogue_are_held_out_together(tmp_path, read):
    turns = [[f"hello {i}", "b", "c", "d"] for i in range(50)]
    path = write(
        tmp_path / "a.jsonl",
        [{"context": found[:n], "response": found[n]} for found in turns for n in range(1, 4)],
    )
    ids = [c.id for c in read(f"pairs:{path}")]
    assert len(ids) == 150 and len(set(ids)) == 50
    assert all(len({is_held_out(id_, 0.3) for id_ in ids[i : i + 3]}) == 1 for i in range(0, 150, 3))


def test_a_task_s_rows_of_a_dialogue_are_held_out_together(tmp_path):
    examples = [Example(f"{i}", ("a",), ("x", "y"), 0, group=f"d{i // 3}") for i in range(9)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConvAI2Config, "read", lambda *rest: Rows(examples))
        ids = [c.id for c in TaskPiece("convai2", CorpusConfig(dir=tmp_path))]
    assert len(ids) == 9 and len(set(ids)) == 3


@pytest.mark.parametrize("size", [200, 10**9])
def test_ids_do_not_depend_on_the_pieces(tmp_path, read, size):
    path = write(tmp_path / "a.jsonl", [{"turns": row["turns"]} for row in rows(23)])
    assert [c.id for c in read(f"pairs:{path}", size)] == [c.id for c in read(f"pairs:{path}", 37)]


def test_an_id_of_null_is_none(tmp_path, read):
    path = write(tmp_path / "a.jsonl", [{"id": None, "turns": ["a", "b"]}, {"id": None, "turns": ["c", "d"]}])
    assert len({c.id for c in read(f"pairs:{path}")}) == 2


def test_a_byte_order_mark_is_no_text(tmp_path, read):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"sentences": ["a", "b"]}).encode())
    assert [c.turns for c in read(f"text:{path}")] == [("a", "b")]


def test_several_processes_make_the_tokens_once(tmp_path, tokenizer_dir):
    """Two of them at the same time: one waits, and finds what the other made."""
    config = corpus(tmp_path, n=2000, piece_mb=0.02)
    prepare_pieces(config)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_prepare import *\n"
        "config = CorpusConfig(files=(sys.argv[2],), dir=Path(sys.argv[3]), held_out=0.1, piece_mb=0.02)\n"
        "print(len(tokens_of(config, Counting(), Path(sys.argv[4])).train.ids))"
    )
    here = Path(__file__).parent
    command = [sys.executable, "-c", program, str(here), config.files[0], str(config.dir), str(tokenizer_dir)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ended = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], ended
    counts = {out.splitlines()[-1] for out, _ in ended}
    assert counts == {str(len(tokens_of(config, Counting(), tokenizer_dir).train.ids))}
    assert not list(config.dir.rglob("piece-*"))


def test_memory_mapped_tokens_go_to_workers_by_name(tmp_path, tokenizer_dir):
    tokens = tokens_of(corpus(tmp_path, n=3000), Counting(), tokenizer_dir).train
    sent = pickle.dumps(tokens)
    assert len(sent) < 2000 < tokens.ids.nbytes
    found = pickle.loads(sent)
    assert isinstance(found.ids, np.memmap)
    same(found, tokens)
    in_memory = tokenise([Conversation("a", ("b", "c"))], Counting())
    same(pickle.loads(pickle.dumps(in_memory)), in_memory)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"piece_mb": float("inf")}, "piece_mb"),
        ({"beam_runner": "Foo"}, "corpus.beam_runner: .*got 'Foo'"),
        (
            {"beam_options": "--direct_num_workers=x"},
            "corpus.beam_options: .*invalid",
        ),
        ({"beam_options": "--direct_num_workers=2 --no_such=1"}, "Beam knows no flag --no_such"),
        ({"beam_options": "nothing"}, "Beam knows no flag nothing"),
        ({"beam_options": "--a='"}, "No closing quotation"),
        ({"piece_parts": 0}, "corpus.piece_parts: expected at least 1, got 0"),
    ],
)
def test_settings_of_the_preparation_that_cannot_be(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        prepare_pieces(corpus(tmp_path, **settings))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "b.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"turns": ["a", "b"]}'))
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "x"
    with pytest.raises(InputError, match="cannot be written") as caught:
        prepare_pieces(CorpusConfig(files=(f"pairs:{path}",), dir=folder))
    assert (caught.value.argument, caught.value.got) == ("corpus.dir", str(folder))


def test_a_stopped_unpacking_begins_again(tmp_path, tokenizer_dir, monkeypatch):
    plain = "".join(json.dumps(row) + "\n" for row in rows(300))
    path = tmp_path / "b.jsonl.gz"
    path.write_bytes(gzip.compress(plain.encode()))
    config = corpus(tmp_path, files=(f"pairs:{path}",), piece_mb=0.004)
    with monkeypatch.context() as patch:
        patch.setattr(lines, "write_text", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare_pieces(config)
    assert list((config.dir / "pretraining_parts").glob("*.partial"))
    assert sum(1 for piece in prepare_pieces(config) for _ in piece) == 300
    assert not list((config.dir / "pretraining_parts").glob("*.partial"))


def test_a_piece_in_which_no_line_begins_is_none(tmp_path, tokenizer_dir):
    long = {"id": "long", "turns": ["a", "b " * 100_000]}
    path = write(tmp_path / "long.jsonl", [long, *rows(300)])
    config = corpus(tmp_path, files=(f"pairs:{path}",), piece_mb=0.05)
    assert sum(1 for piece in prepare_pieces(config) for _ in piece) == 301


def test_what_the_task_tests_on_is_left_out(tmp_path, tokenizer_dir):
    config = corpus(tmp_path)
    tests = HeldOut(row["turns"] for row in rows(300)[10:14])
    found = tokens_of(config, Counting(), tokenizer_dir, excluded=tests)
    assert found.left_out == 4
    texts = {tuple(t.turn(i).tolist()) for t in (found.train, found.valid) for i in range(len(t.turns) - 1)}
    for row in rows(300)[10:14]:
        for encoded in Counting().encode(row["turns"]):
            assert tuple(encoded) not in texts


def test_a_broken_line_is_named_and_what_was_prepared_is_kept(tmp_path, tokenizer_dir):
    config = corpus(tmp_path, piece_mb=0.004)
    path = tmp_path / "a.jsonl"
    with path.open("a") as file:
        file.write("{broken\n")
    with pytest.raises(InputError, match=r"a\.jsonl, the line at byte \d+: expected an object with turns"):
        prepare_pieces(config)


def test_tokens_to_learn_from_are_drawn(tmp_path, tokenizer_dir):
    tokens = tokens_of(corpus(tmp_path), Counting(), tokenizer_dir).train
    text = TextConfig(context_tokens=64, candidate_tokens=32)
    whole, half = (
        Pairs(tokens, text, Counting()),
        Pairs(tokens, text, Counting(), most_tokens=len(tokens.ids) // 2),
    )
    chosen = np.unique(half.conversation)
    assert 0.3 < len(half) / len(whole) < 0.7
    assert chosen.max() > 0.9 * whole.conversation.max(), "not the first ones"
    begins, ends = tokens.conversations[chosen], tokens.conversations[chosen + 1]
    assert len(tokens.ids) // 2 - 200 < tokens.lengths(begins, ends).sum() <= len(tokens.ids) // 2
    with pytest.raises(InputError) as caught:
        Pairs(tokens, text, Counting(), most_tokens=3)
    shortest = np.diff(tokens.turns[tokens.conversations]).min()
    assert (caught.value.argument, caught.value.got) == ("corpus.tokens", 3)
    assert f"at least {shortest}, " in str(caught.value.expected)
