"""Files are written whole, whatever the names and texts in them."""

import errno
import json
import os
from pathlib import Path

import jax
import pytest

from polyjax.errors import InputError
from polyjax.runtime.compilation import enable_compilation_cache
from polyjax.runtime.files import write_text
from polyjax.runtime.journal import Journal


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("plain é 😀", "plain é 😀"),
        ("r\udcc3\udcbcn", "rün"),  # a path as Python has it where the locale is ASCII
        ("caf\udce9", "caf\\udce9"),  # a path in Latin-1
        ("half \ud83d", "half \\ud83d"),
        ("\udcc3\udcbc\ud83d", "ü\\ud83d"),
    ],
)
def test_texts_with_lone_surrogates_are_written(tmp_path, text, written):
    """They come with paths and with JSON; a report must not be lost for one."""
    write_text(tmp_path / "a", text)
    assert (tmp_path / "a").read_bytes().decode("utf-8") == written
    write_text(tmp_path / "a.json", json.dumps([text], ensure_ascii=False))
    again = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert again == [text if "\\" in written and "ü" not in written else written.replace("\\ud83d", "\ud83d")]


def test_a_full_disk_costs_a_journal_nothing_that_it_has(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "kept.jsonl", {"work": 1})
    journal.add([1, 2])

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="No space left") as refused:
        patch.setattr(os, "fsync", full)
        journal.add([3])
    assert (
        refused.value.argument == str(tmp_path / "kept.jsonl") and "2 results are kept" in refused.value.fix
    )
    assert Journal(tmp_path / "kept.jsonl", {"work": 1}).done[:2] == [1, 2]


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(Path, "home", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
