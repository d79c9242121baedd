"""Readers of the paper's tasks: recorded official rows exactly, and the counts of real files."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from conftest import shared_data
from polyjax.data.tasks import convai2, dstc7, ubuntu_v2
from polyjax.data.tasks.source import MissingFile, OfficialFile, locate
from polyjax.errors import InputError
from polyjax.evaluation.baselines import tfidf_ranking
from polyjax.types import Example

FIXTURES = "parlai_fixtures"


def acts(name: str) -> list[dict]:
    """What ParlAI's teacher gave for the first rows of the official files."""
    recorded = yaml.safe_load((shared_data(FIXTURES) / name).read_text(encoding="utf-8"))
    return [act for episode in recorded["acts"] for act in episode]


@pytest.mark.parametrize(
    ("recorded", "file"),
    [
        ("convai2_valid", "valid_self_original"),
        ("convai2_train", "train_self_original"),
        ("convai2_both_valid", "valid_both_original"),
        ("convai2_both_train", "train_both_original"),
        ("convai2_none_valid", "valid_none_original"),
        ("convai2_none_train", "train_none_original"),
        ("convai2_self_revised_valid", "valid_self_revised"),
        ("convai2_self_revised_train", "train_self_revised"),
    ],
)
def test_convai2_rows(recorded, file):
    expected = acts(f"convai2/{recorded}.yml")
    found = list(convai2.parse(shared_data(FIXTURES) / "rebuilt" / f"{file}.sample.txt"))
    history: list[str] = []
    assert len(found) == len(expected) > 0
    for example, act in zip(found, expected, strict=True):
        labels = act.get("eval_labels") or act["labels"]
        history.append(act["text"])
        assert "\n".join(example.context) == "\n".join(history)
        assert example.label_text == labels[0]
        assert list(example.candidates) == act["label_candidates"]
        history.append(labels[0])
        if act["episode_done"]:
            history = []


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_dstc7_rows(split):
    expected = acts(f"dstc7/dstc7_{'valid' if split == 'dev' else split}.yml")
    file = shared_data(FIXTURES) / "rebuilt" / f"ubuntu_{split}_subtask_1.sample.json"
    found = list(dstc7.parse(file))
    assert len(found) == len(expected) > 0
    for example, act in zip(found, expected, strict=True):
        assert "".join(f"{turn}\n" for turn in example.context) == act["text"]
        assert example.label_text == (act.get("eval_labels") or act["labels"])[0]
        # The recorder cut the candidates to 20, and the answer was put back.
        if "label_candidates" in act:
            assert set(act["label_candidates"]) <= set(example.candidates)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_ubuntu_rows(split, tmp_path):
    """The recorded texts have __eou__ and __eot__ replaced; put back into a CSV, they come out the same."""
    expected = acts(f"ubuntu/ubuntu_{split}.yml")

    def field(text: str) -> str:
        return text.replace(" \n ", " __eot__ ").replace(" . ", " __eou__ ") + " __eot__ "

    rows = []
    for act in expected:
        label = (act.get("eval_labels") or act["labels"])[0]
        others = [c for c in act.get("label_candidates", []) if c != label]
        rows.append([field(act["text"]), label, *(others or ["1.0"])])
    header = ubuntu_v2.TRAIN_COLUMNS
    if split != "train":
        header = [*ubuntu_v2.TEST_COLUMNS, *(f"Distractor_{i}" for i in range(9))]
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    found = list(ubuntu_v2.parse(tmp_path / "rows.csv"))
    assert len(found) == len(expected) > 0
    for example, act in zip(found, expected, strict=True):
        assert ubuntu_v2.plain(field(act["text"])) == act["text"]
        assert list(example.context) == [turn.strip() for turn in act["text"].split("\n")]
        assert example.label_text == (act.get("eval_labels") or act["labels"])[0]
        if split != "train":
            assert sorted(example.candidates) == sorted(act["label_candidates"])


def test_counts_of_real_files():
    personas = list(convai2.parse(shared_data("convai2") / "valid_self_original.txt"))
    lines = (shared_data("convai2") / "valid_self_original.txt").read_text(encoding="utf-8").split("\n")
    assert len({e.group for e in personas}) == 700
    assert len(personas) == sum("\t" in line for line in lines)
    assert {len(e.candidates) for e in personas} == {20} and {e.label for e in personas} == {19}
    sample = list(convai2.parse(shared_data("convai2") / "train_self_original_no_cands.sample.txt"))
    assert (len({e.group for e in sample}), len(sample)) == (9, 66)
    assert {len(e.candidates) for e in sample} == {1}

    folder = shared_data("ubuntu_irc")
    assert [len(list(ubuntu_v2.parse(folder / f"{s}.csv"))) for s in ("train", "valid")] == [14_261, 1_077]
    assert {len(e.candidates) for e in ubuntu_v2.parse(folder / "valid.csv")} == {10}
    answers = dstc7.read_answers(folder / "ubuntu_responses_subtask_1.sample.tsv")
    test = list(dstc7.parse(folder / "ubuntu_test_subtask_1.sample.json", answers=answers))
    dev = list(dstc7.parse(folder / "ubuntu_dev_subtask_1.json"))
    train = list(dstc7.parse(folder / "ubuntu_train_subtask_1.json"))
    assert [len(rows) for rows in (train, dev, test)] == [400, 652, 40]
    assert {len(e.candidates) for e in [*train, *dev, *test]} == {100}
    assert all(e.label_text == answers[e.id][1] for e in test)


def test_sampled_candidates_hold_the_answer():
    file = shared_data("ubuntu_irc") / "ubuntu_dev_subtask_1.json"
    full, few = list(dstc7.parse(file)), list(dstc7.parse(file, sampled=16))
    assert few == list(dstc7.parse(file, sampled=16))
    for a, b in zip(full, few, strict=True):
        assert len(b.candidates) == 16 and b.label_text == a.label_text
        assert set(b.candidates) <= set(a.candidates)


LINE = "1 your persona: i knit .\n2 hi\thello\t\tyes|hello\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello there\n", ":1: expected a number, a space and a text, got 'hello there'"),
        (LINE + "3 a\tb\t\tc|d\n", ":3: expected the label among the candidates, got 'b'"),
        (LINE + "x\n", ":3: expected a number"),
    ],
)
def test_bad_fbdialog_lines_are_named(tmp_path, text, message):
    (tmp_path / "f.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        list(convai2.parse(tmp_path / "f.txt"))


def test_fbdialog_endings_and_encodings(tmp_path):
    (tmp_path / "f.txt").write_bytes(LINE.replace("\n", "\r\n").encode() + b"\r\n1 bye\tsee you\n")
    first, second = convai2.parse(tmp_path / "f.txt")
    assert first.context == ("your persona: i knit .\nhi",) and (first.label, first.id) == (1, "0/0")
    assert second.context == ("bye",) and second.candidates == ("see you",) and second.group == "1"
    (tmp_path / "f.txt").write_bytes(b"1 caf\xe9\tyes\n")
    with pytest.raises(InputError, match="not valid UTF-8"):
        list(convai2.parse(tmp_path / "f.txt"))


def dialogue(**changes) -> dict:
    options = [{"candidate-id": f"C{i}", "utterance": f"text {i}"} for i in range(4)]
    return {
        "example-id": 7,
        "messages-so-far": [{"speaker": "participant_1", "utterance": "hi"}],
        "options-for-correct-answers": [options[2]],
        "options-for-next": options,
    } | changes


def parsed(tmp_path: Path, rows: object, **options):
    (tmp_path / "f.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return list(dstc7.parse(tmp_path / "f.json", **options))


def test_dstc7_answers_are_matched_by_id(tmp_path):
    (plain,) = parsed(tmp_path, [dialogue()])
    assert (plain.label, plain.label_text, plain.context) == (2, "text 2", ("participant 1: hi",))
    same = [{"candidate-id": f"C{i}", "utterance": "yes"} for i in range(3)]
    (ties,) = parsed(
        tmp_path, [dialogue(**{"options-for-next": same, "options-for-correct-answers": same[1:2]})]
    )
    assert ties.label == 1
    alone = [{"candidate-id": "NEW", "utterance": "other"}]
    (added,) = parsed(tmp_path, [dialogue(**{"options-for-correct-answers": alone})])
    assert (added.label, len(added.candidates)) == (4, 5)
    row = dialogue()
    del row["options-for-correct-answers"]
    (test,) = parsed(tmp_path, [row], answers={"7": ("C3", "text 3")})
    assert test.label == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("[{", "expected a JSON array, got"),
        ("{}", "expected a JSON array of dialogues, got dict"),
        ([dialogue(), {"example-id": 1}], "expected DSTC7's keys, got KeyError.* in dialogue 1"),
        ([dialogue(**{"messages-so-far": 3})], "expected DSTC7's keys, got .* in dialogue 0"),
    ],
)
def test_bad_dstc7_files_are_named(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        parsed(tmp_path, rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", ":1: expected the columns Context, Utterance, Label"),
        ("Context,Utterance,Label\na,b\n", ":2: expected 3 columns, got 2"),
        ("Context,Utterance,Label\na,b,1.0\na,b,yes\n", ":3: expected a Label of 1.0 or 0.0, got 'yes'"),
        ('Context,Utterance,Label\n"a"b,c,1.0\n', ":2: cell 1: expected a delimiter or the end of the line"),
    ],
)
def test_bad_ubuntu_rows_are_named(tmp_path, text, message):
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        list(ubuntu_v2.parse(tmp_path / "f.csv"))


def test_wrong_utterances_are_left_out_and_long_fields_read(tmp_path):
    long = "word " * 100_000
    (tmp_path / "f.csv").write_text(
        f"Context,Utterance,Label\na __eou__ __eot__ ,no,0.0\n{long}__eot__ ,yes,1.0\n"
    )
    (example,) = ubuntu_v2.parse(tmp_path / "f.csv")
    assert example.id == "2" and example.candidates == ("yes",) and len(example.context[0]) > 400_000


def test_files_are_the_official_ones_or_asked_for(tmp_path):
    file = OfficialFile("f.txt", 3, "900150983cd24fb0d6963f7d28e17f72")
    with pytest.raises(InputError, match="part of the ConvAI2 data set, see ParlAI's") as caught:
        locate(tmp_path, file, convai2.SOURCE, unverified=True)
    assert caught.value.argument == str(tmp_path / "f.txt") and "`task.source`" in caught.value.fix
    assert isinstance(caught.value, MissingFile)
    (tmp_path / "f.txt").write_text("abc")
    assert locate(tmp_path, file, convai2.SOURCE, unverified=False)[1]
    for text, message in (("abcd", "it has 4 bytes, the official file 3"), ("abd", "it has md5 ")):
        (tmp_path / "f.txt").write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            locate(tmp_path, file, convai2.SOURCE, unverified=False)
        assert caught.value.argument == str(tmp_path / "f.txt") and "`task.unverified`" in caught.value.fix
        assert not locate(tmp_path, file, convai2.SOURCE, unverified=True)[1]
    with pytest.raises(InputError, match="its official size and md5 are not known"):
        locate(tmp_path, OfficialFile("f.txt"), convai2.SOURCE, unverified=False)


def recall_of_tfidf(examples: list[Example], fit_on: list[str]) -> float:
    return tfidf_ranking(examples, fit_on).recall(1)


def test_tfidf_finds_what_it_should():
    """The readers feed the right text: a plain baseline reaches what is known of such rows."""
    folder = shared_data("ubuntu_irc")
    train, valid = (list(ubuntu_v2.parse(folder / f"{name}.csv")) for name in ("train", "valid"))
    words = [text for e in train for text in (e.context[-1], e.label_text)]
    assert 0.43 < recall_of_tfidf(valid, words) < 0.52, "of ten; 0.49 is published for the official test rows"

    rows = list(convai2.parse(shared_data("convai2") / "valid_self_original.txt"))
    words = [text for e in rows for text in (e.context[0], e.context[-1], e.label_text)]

    def with_persona(example: Example) -> Example:
        persona = example.context[0].replace("your persona: ", "").split("\n")[:-1]
        last = example.context[-1].split("\n")[-1]
        return dataclasses.replace(example, context=(" ".join([*persona, last]),))

    told = recall_of_tfidf([with_persona(e) for e in rows], words)
    alone = recall_of_tfidf([dataclasses.replace(e, context=e.context[-1:]) for e in rows[1:]], words)
    assert 0.45 < told < 0.51 and alone < told - 0.1, "of twenty: the persona reaches the model"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"messages-so-far": []}, "f.json, dialogue 0: there are no messages-so-far"),
        (
            {"messages-so-far": [{"speaker": "participant_1", "utterance": None}]},
            "expected DSTC7's keys, got .* in dialogue 0",
        ),
        (
            {"options-for-next": [{"candidate-id": "A", "utterance": None}]},
            "expected DSTC7's keys, got .* in dialogue 0",
        ),
    ],
)
def test_dstc7_texts_are_texts(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        parsed(tmp_path, [dialogue(**changes)])
    with pytest.raises(InputError, match="dialogue 1: the example-id 7 is also that of dialogue 0"):
        parsed(tmp_path, [dialogue(), dialogue()])
    with pytest.raises(InputError, match="expected a JSON array"):
        parsed(tmp_path, "[" * 100_000)


def test_byte_order_marks_and_lines_that_are_no_utf8(tmp_path):
    path = tmp_path / "f.csv"
    good = "Context,Utterance,Label\na __eot__ ,yes,1.0\n".encode("utf-8-sig")
    path.write_bytes(good)
    assert [e.label_text for e in ubuntu_v2.parse(path)] == ["yes"]
    path.write_bytes(good + b"b\xe9,no,1.0\n")
    with pytest.raises(InputError, match="f.csv:3: not valid UTF-8: .* at byte 1"):
        list(ubuntu_v2.parse(path))
    path.write_bytes(good + b" __eot__ ,no,1.0\n")
    with pytest.raises(InputError, match="f.csv:3: the context is empty"):
        list(ubuntu_v2.parse(path))
    (tmp_path / "f.txt").write_bytes(LINE.encode("utf-8-sig") + b"3 caf\xe9\tyes\n")
    with pytest.raises(InputError, match="f.txt:3: not valid UTF-8: .* at byte 5"):
        list(convai2.parse(tmp_path / "f.txt"))
    (tmp_path / "a.tsv").write_bytes(b"7\tB\tcaf\xe9\n")
    with pytest.raises(InputError, match="a.tsv: not valid UTF-8"):
        dstc7.read_answers(tmp_path / "a.tsv")


def test_rows_of_one_dialogue_are_one_group(tmp_path):
    """Intervals draw groups: rows that begin with the same turn are no independent ones."""
    path = tmp_path / "f.csv"
    rows = ["hi __eot__ ,yes,1.0", "hi __eot__ yes __eot__ ,and,1.0", "ho __eot__ ,no,1.0"]
    path.write_text("\n".join(["Context,Utterance,Label", *rows]) + "\n")
    assert [e.group for e in ubuntu_v2.parse(path)] == ["hi", "hi", "ho"]
    several = [dialogue(), dialogue(**{"example-id": 8})]
    assert {e.group for e in parsed(tmp_path, several)} == {"participant 1: hi"}
