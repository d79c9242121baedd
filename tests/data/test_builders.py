"""Rows of the named tasks, prepared once: the same as parsed, read anew only when a file changes."""

import csv
import dataclasses
import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import tqdm_utils

from polyjax.data.tasks import builders, ubuntu_v2
from polyjax.data.tasks.convai2 import ConvAI2Config
from polyjax.data.tasks.dstc7 import DSTC7Config
from polyjax.data.tasks.ubuntu_v2 import UbuntuV2Config
from polyjax.errors import InputError


def write_ubuntu(folder, name: str = "train", n: int = 12, says: str = "yes") -> None:
    folder.mkdir(exist_ok=True)
    header = ubuntu_v2.TRAIN_COLUMNS
    rows = [[f"hi {i} __eou__ __eot__ héllo __eou__ __eot__ ", f"{says} {i}", "1.0"] for i in range(n)]
    if name != "train":
        header = [*ubuntu_v2.TEST_COLUMNS, "Distractor_0"]
        rows = [[context, label, "no"] for context, label, _ in rows]
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def config(tmp_path):
    for name in ("train", "valid"):
        write_ubuntu(tmp_path / "ubuntu", name)
    return UbuntuV2Config(source=tmp_path / "ubuntu", unverified=True, data_dir=tmp_path / "data")


def test_prepared_rows_are_those_of_the_file(config):
    for split in ("train", "valid"):
        found = config.read(split)
        assert list(found.examples) == list(ubuntu_v2.parse(config.source / f"{split}.csv"))
        assert found.note.startswith(f"{split}.csv: not known to be the official file")
    rows = config.read("train").examples
    assert rows[-1] == rows[11] and rows[2:4] == [rows[2], rows[3]] and rows[5:5] == []
    with pytest.raises(IndexError):
        rows[12]
    assert list(pickle.loads(pickle.dumps(rows))) == list(rows), "as worker processes get them"


def test_the_process_is_left_as_it_was(config):
    before = logging.getLogger("absl").level
    bars = tqdm_utils._active
    tfds.display_progress_bar(enable=True)
    try:
        config.read("train")
        assert tqdm_utils._active, "whoever uses tensorflow-datasets still sees its bars"
    finally:
        tfds.display_progress_bar(enable=bars)
    assert logging.getLogger("absl").level == before


def test_a_file_is_parsed_once_and_again_when_it_changes(config, monkeypatch):
    first = list(config.read("train").examples)
    monkeypatch.setattr(builders, "_prepare", lambda *args: pytest.fail("prepared again"))
    assert list(config.read("train").examples) == first
    monkeypatch.undo()
    write_ubuntu(config.source, says="no")
    assert config.read("train").examples[0].label_text == "no 0"
    os.utime(config.source / "train.csv", (0, 0))
    assert len(config.read("train").examples) == 12


def test_what_was_prepared_unverified_is_not_taken_for_official(config):
    config.read("train")
    with pytest.raises(InputError, match="size and md5 are not known.*task.unverified"):
        dataclasses.replace(config, unverified=False).read("train")


def test_a_bad_line_is_named_and_nothing_half_is_kept(config):
    with (config.source / "train.csv").open("a", encoding="utf-8") as file:
        file.write("only,two\n")
    for _ in range(2):
        with pytest.raises(InputError, match=r"train.csv:14: expected 3 columns, got 2"):
            config.read("train")
    write_ubuntu(config.source)
    assert len(config.read("train").examples) == 12


def test_a_missing_file_is_named_with_its_source(config):
    with pytest.raises(InputError, match="test.csv: .*missing; .* part of the Ubuntu Dialogue Corpus V2"):
        config.read("test")


def test_prepared_rows_need_their_files(config):
    """A folder that is gone is an error, not old data."""
    config.read("train")
    shutil.rmtree(config.source)
    with pytest.raises(InputError, match="train.csv: the file is missing"):
        config.read("train")


def test_an_unwritable_folder_is_named(config):
    with pytest.raises(InputError, match="cannot be written") as caught:
        dataclasses.replace(config, data_dir=Path("/proc/nowhere")).read("train")
    assert (caught.value.argument, caught.value.got) == ("task.data_dir", "/proc/nowhere")


def test_reading_leaves_absls_logger_alone(config):
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.WARNING)  # not ERROR, which reading sets meanwhile
    try:
        config.read("train")
        assert logger.level == logging.WARNING
    finally:
        logger.setLevel(before)


def test_forms_of_a_task_are_kept_apart(tmp_path):
    folder = tmp_path / "ConvAI2"
    folder.mkdir()
    (folder / "train_self_original_no_cands.txt").write_text("1 your persona: i knit .\n2 hi\thello\n")
    (folder / "train_none_original.txt").write_text("1 hi\thello\t\tyes|hello\n")
    config = ConvAI2Config(source=folder, unverified=True, data_dir=tmp_path / "data")
    told = dataclasses.replace(config, candidates=False).read("train").examples
    alone = dataclasses.replace(config, persona="none").read("train").examples
    assert told[0].context == ("your persona: i knit .\nhi",) and told[0].candidates == ("hello",)
    assert alone[0].context == ("hi",) and alone[0].candidates == ("yes", "hello")


def test_dstc7_reads_its_answers_from_the_table(tmp_path):
    folder = tmp_path / "dstc7"
    folder.mkdir()
    (folder / "ubuntu_test_subtask_1.json").write_text(
        '[{"example-id": 7, "messages-so-far": [{"speaker": "participant_1", "utterance": "hi"}], '
        '"options-for-next": [{"candidate-id": "A", "utterance": "no"}, '
        '{"candidate-id": "B", "utterance": "yes"}]}]'
    )
    (folder / "ubuntu_responses_subtask_1.tsv").write_text("7\tB\tyes\n")
    config = DSTC7Config(source=folder, unverified=True, data_dir=tmp_path / "data")
    (example,) = config.read("test").examples
    assert example.label_text == "yes" and example.label == 1
    (folder / "ubuntu_responses_subtask_1.tsv").write_text("7\tA\tno\n")
    assert config.read("test").examples[0].label == 0, "a changed table is read again"


def test_a_file_without_rows_is_named(config):
    (config.source / "valid.csv").write_text(",".join([*ubuntu_v2.TEST_COLUMNS, "Distractor_0"]) + "\n")
    with pytest.raises(InputError, match="valid-unverified-.*: its file holds no rows"):
        config.read("valid")
