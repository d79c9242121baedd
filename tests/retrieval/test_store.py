"""The index on disk: what is committed is kept, whatever happens."""

import errno
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from polyjax.data.text import TextConfig
from polyjax.errors import InputError
from polyjax.inference.scorer import TextScorer
from polyjax.retrieval.index import change as changes
from polyjax.retrieval.index import store
from polyjax.retrieval.index.build import add_to_index, build_index
from polyjax.retrieval.index.change import compact, remove
from polyjax.retrieval.index.fingerprint import Fingerprint
from polyjax.retrieval.index.rows import quantise
from polyjax.retrieval.index.store import CandidateIndex, open_index
from polyjax.retrieval.index.texts import text_digest

TEXTS = ["one", "two words", "drei", "naïve ☕", "five", "six"]


class Encoder(TextScorer):
    """Encodes a text into random numbers that its letters seed."""

    dim, is_dual = 8, True
    text = SimpleNamespace(config=TextConfig())

    def __init__(self, *, stop_after: int = 10**9, batch: int = 2, seed: int = 0, **changes):
        self.encoded: list[str] = []
        self._stop_after, self._batch = stop_after, batch
        self.made = made_by(seed, **changes)
        self.settings = SimpleNamespace(encoder=SimpleNamespace(dtype=self.made.arithmetic))
        self._seed = seed

    def vectors(self, texts):
        """Float32 [n, dim]."""
        draw = lambda text: np.random.default_rng([self._seed, *text.encode()])  # noqa: E731
        return np.array([draw(text).standard_normal(self.dim) for text in texts], np.float32)

    def candidate_plan(self, texts):
        """Batches, shortest first."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        for i in range(0, len(texts), self._batch):
            yield order[i : i + self._batch], 8

    def candidate_batches(self, texts, *, first=0):
        """The plan's, encoded."""
        for places, _ in list(self.candidate_plan(texts))[first:]:
            if len(self.encoded) >= self._stop_after:
                raise KeyboardInterrupt
            self.encoded += [texts[j] for j in places]
            yield places, self.vectors([texts[j] for j in places])


@pytest.fixture(autouse=True)
def fingerprints(monkeypatch):
    """Encoders say themselves what they are."""
    for module in ("build", "manifest"):
        place = f"polyjax.retrieval.index.{module}.fingerprint"
        monkeypatch.setattr(place, lambda scorer, version=None: scorer.made)


def made_by(seed, **changes) -> Fingerprint:
    """The fingerprint of an encoder."""
    parts = {"weights": f"seed {seed}", "architecture": "a", "tokenizer": "t", "lengths": "l"}
    return Fingerprint(**parts | {"arithmetic": "float32"} | changes)


def content(index: CandidateIndex) -> dict[int, tuple[str, tuple[float, ...]]]:
    found = {}
    for segment in index.segments:
        vectors = np.asarray(segment.vectors, np.float32)
        if segment.scales is not None:
            vectors = vectors * segment.scales[:, None]
        for i in np.flatnonzero(index.live(segment)):
            found[int(segment.ids[i])] = (segment.texts[int(i)], tuple(vectors[i].tolist()))
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_what_was_built_is_opened(tmp_path, dtype):
    build_index(tmp_path / "i", TEXTS, Encoder(), dtype=dtype)
    found = content(open_index(tmp_path / "i"))
    assert [text for text, _ in found.values()] == TEXTS and list(found) == list(range(6))
    tolerance = {"float32": 0, "bfloat16": 2**-8, "int8": 1 / 127}[dtype]
    exact = Encoder().vectors(TEXTS)
    for (_, vector), expected in zip(found.values(), exact, strict=True):
        np.testing.assert_allclose(vector, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_float32_rows_are_kept_rounded_as_well(tmp_path):
    """What certified search reads first: the same rows in half the bytes, after every change."""
    folder = tmp_path / "i"
    build_index(folder, TEXTS, Encoder())
    add_to_index(folder, ["seven", "eight"], Encoder())
    for change in (lambda: None, lambda: remove(folder, [1]), lambda: compact(folder)):
        change()
        for segment in open_index(folder).segments:
            assert segment.coarse.dtype == ml_dtypes.bfloat16
            expected = np.asarray(segment.vectors).astype(ml_dtypes.bfloat16)
            np.testing.assert_array_equal(segment.coarse.view(np.uint16), expected.view(np.uint16))
    for dtype in ("bfloat16", "int8"):
        build_index(tmp_path / dtype, TEXTS, Encoder(), dtype=dtype)
        (segment,) = open_index(tmp_path / dtype).segments
        assert segment.coarse is segment.vectors and segment.rounded is None
    np.save(
        folder / open_index(folder).manifest.segments[0].name / "rounded.npy", np.zeros((2, 8), np.uint16)
    )
    with pytest.raises(InputError, match=r"rounded.npy is uint16 of shape \(2, 8\), expected"):
        open_index(folder)


def test_nothing_but_the_index_is_left(tmp_path):
    folder = tmp_path / "i"
    build_index(folder, TEXTS, Encoder())
    assert {p.name for p in folder.iterdir()} == {"manifest.json", "000000", ".lock"}
    assert {p.name for p in (folder / "000000").iterdir()} == {
        "texts.bin",
        "ends.npy",
        "ids.npy",
        "vectors.npy",
        "rounded.npy",
        "norms.npy",
    }


def test_rows_of_zeros_survive_int8():
    stored, scales = quantise(np.zeros((2, 3), np.float32), "int8")
    assert not stored.any() and not scales.any()


def test_ids_are_stable_through_adding_removing_and_compacting(tmp_path):
    folder, encoder = tmp_path / "i", Encoder()
    build_index(folder, TEXTS[:4], encoder)
    before = content(open_index(folder))
    assert add_to_index(folder, ["two words", "five", "five", "six"], encoder) == [1, 4, 4, 5]
    assert remove(folder, [1, 4]) == 2
    assert remove(folder, [1]) == 0
    index = open_index(folder)
    expected = {id_: pair for id_, pair in before.items() if id_ != 1} | {
        5: ("six", tuple(encoder.vectors(["six"])[0].tolist()))
    }
    assert content(index) == expected and len(index) == 4
    assert compact(folder) == 2
    assert compact(folder) == 0
    compacted = open_index(folder)
    assert content(compacted) == expected and len(compacted.segments) == 1
    assert content(index) == expected, "an index that was open before stays as it was"
    assert add_to_index(folder, ["two words"], encoder) == [6], "a removed id is never given again"
    assert [compacted.text(row) for row in range(4)] == ["one", "drei", "naïve ☕", "six"]
    assert [compacted.id(row) for row in range(4)] == [0, 2, 3, 5]


def test_an_interrupted_building_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("polyjax.retrieval.index.build.SAVE_EVERY_S", -1.0)
    build_index(tmp_path / "whole", TEXTS, Encoder(), dtype="int8")
    folder, first, second = tmp_path / "i", Encoder(stop_after=4), Encoder()
    with pytest.raises(KeyboardInterrupt):
        build_index(folder, TEXTS, first, dtype="int8")
    with pytest.raises(InputError) as error:
        open_index(folder)
    assert error.value.problem == "there is no index yet (an unfinished build is there)"
    counted = []
    build_index(folder, TEXTS, second, dtype="int8", progress=counted.append)
    assert not set(first.encoded) & set(second.encoded) and sum(counted) == len(TEXTS)
    assert content(open_index(folder)) == content(open_index(tmp_path / "whole"))


def test_an_interrupted_building_in_other_batches_begins_anew(tmp_path, monkeypatch):
    """As after an upgrade of polyjax: what the batch of a number holds is another then."""
    monkeypatch.setattr("polyjax.retrieval.index.build.SAVE_EVERY_S", -1.0)
    with pytest.raises(KeyboardInterrupt):
        build_index(tmp_path / "i", TEXTS, Encoder(stop_after=4))
    other = Encoder(batch=3)
    build_index(tmp_path / "i", TEXTS, other)
    assert len(other.encoded) == 6
    found = [vector for _, vector in content(open_index(tmp_path / "i")).values()]
    np.testing.assert_array_equal(np.array(found), other.vectors(TEXTS))


def test_adding_does_not_drop_what_is_unfinished(tmp_path, monkeypatch):
    monkeypatch.setattr("polyjax.retrieval.index.build.SAVE_EVERY_S", -1.0)
    folder, first = tmp_path / "i", Encoder(stop_after=4)
    build_index(folder, TEXTS[:1], Encoder())
    with pytest.raises(KeyboardInterrupt):
        build_index(folder, TEXTS, first)
    with pytest.raises(InputError) as error:
        add_to_index(folder, ["more"], Encoder())
    assert "unfinished there (4 candidates are encoded)" in error.value.problem
    second = Encoder()
    build_index(folder, TEXTS, second)
    assert len(second.encoded) == 2


def test_an_interrupted_addition_can_be_finished_after_a_removal(tmp_path, monkeypatch):
    """The same command adds other texts then; it is still the one that began."""
    monkeypatch.setattr("polyjax.retrieval.index.build.SAVE_EVERY_S", -1.0)
    folder = tmp_path / "i"
    build_index(folder, TEXTS[:2], Encoder())
    with pytest.raises(KeyboardInterrupt):
        add_to_index(folder, TEXTS, Encoder(stop_after=2))
    remove(folder, [0])
    with pytest.raises(InputError, match="unfinished there"):
        add_to_index(folder, ["more"], Encoder())
    assert add_to_index(folder, TEXTS, Encoder()) == [2, 1, 3, 4, 5, 6]
    assert {text for text, _ in content(open_index(folder)).values()} == set(TEXTS)


def test_an_interrupted_addition_can_be_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("polyjax.retrieval.index.build.SAVE_EVERY_S", -1.0)
    folder = tmp_path / "i"
    build_index(folder, TEXTS[:2], Encoder())
    with pytest.raises(KeyboardInterrupt):
        add_to_index(folder, TEXTS, Encoder(stop_after=2))
    assert add_to_index(folder, ["more"], Encoder(), resume=False) == [2]
    assert {text for text, _ in content(open_index(folder)).values()} == {*TEXTS[:2], "more"}
    assert not (folder / "building").exists()


@pytest.mark.parametrize("damage", ["vectors missing", "vectors short", "scales missing", "other shape"])
def test_an_unfinished_building_that_is_damaged_begins_anew(tmp_path, monkeypatch, damage):
    monkeypatch.setattr("polyjax.retrieval.index.build.SAVE_EVERY_S", -1.0)
    folder = tmp_path / "i"
    with pytest.raises(KeyboardInterrupt):
        build_index(folder, TEXTS, Encoder(stop_after=4))
    part = folder / "building"
    vectors = part / "vectors.npy"
    match damage:
        case "vectors missing":
            vectors.unlink()
        case "vectors short":
            vectors.write_bytes(vectors.read_bytes()[:-9])
        case "scales missing":
            (part / "scales.partial").unlink()
        case _:
            np.save(vectors, np.zeros((3, 8), np.float32))
    again = Encoder()
    build_index(folder, TEXTS, again)
    assert len(again.encoded) == 6
    build_index(tmp_path / "j", TEXTS, Encoder())
    assert content(open_index(folder)) == content(open_index(tmp_path / "j"))


@pytest.mark.parametrize("changed", ["texts", "model", "dtype", "devices"])
def test_an_interrupted_building_of_something_else_is_not_mixed_in(tmp_path, monkeypatch, changed):
    monkeypatch.setattr("polyjax.retrieval.index.build.SAVE_EVERY_S", -1.0)
    with pytest.raises(KeyboardInterrupt):
        build_index(tmp_path / "i", TEXTS, Encoder(stop_after=4))
    texts = TEXTS[::-1] if changed == "texts" else TEXTS
    other = Encoder(seed=1 if changed == "model" else 0, batch=4 if changed == "devices" else 2)
    build_index(tmp_path / "i", texts, other, dtype="int8" if changed == "dtype" else "float32")
    assert len(other.encoded) == 6
    build_index(tmp_path / "j", texts, other, dtype="int8" if changed == "dtype" else "float32")
    assert content(open_index(tmp_path / "i")) == content(open_index(tmp_path / "j"))


def test_a_new_building_leaves_the_old_index_until_it_is_there(tmp_path):
    folder = tmp_path / "i"
    build_index(folder, TEXTS[:3], Encoder())
    before = content(open_index(folder))
    with pytest.raises(KeyboardInterrupt):
        build_index(folder, TEXTS, Encoder(stop_after=2))
    assert content(open_index(folder)) == before
    build_index(folder, TEXTS[3:], Encoder())
    assert [text for text, _ in content(open_index(folder)).values()] == TEXTS[3:]


@pytest.mark.parametrize("change", ["build", "add", "remove", "compact"])
def test_a_change_that_is_not_committed_did_not_happen(tmp_path, monkeypatch, change):
    """Stopped just before the manifest's renaming: the index is as before; the change can be made again."""
    folder, encoder = tmp_path / "i", Encoder()
    build_index(folder, TEXTS[:4], encoder)
    remove(folder, [0])
    before = content(open_index(folder))
    actions = {
        "build": lambda: build_index(folder, TEXTS, encoder),
        "add": lambda: add_to_index(folder, TEXTS, encoder),
        "remove": lambda: remove(folder, [2]),
        "compact": lambda: compact(folder),
    }

    def killed(path, text):
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        write_text(path, text)

    write_text = changes.write_text
    with monkeypatch.context() as patch:
        patch.setattr(changes, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            actions[change]()
    assert content(open_index(folder)) == before
    actions[change]()
    after = content(open_index(folder))
    assert (after == before) == (change == "compact")
    names = {p.name for p in folder.iterdir()}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert names == {".lock", "manifest.json", *(s["name"] for s in manifest["segments"])} | (
        {manifest["removed"]} - {""}
    ), "what the interrupted change left is cleared away"


@pytest.mark.parametrize(
    ("changes", "problem", "fix"),
    [
        ({"seed": 1}, "the index was made with another model (other weights)", "build it again"),
        ({"tokenizer": "x"}, "the index was made with another model (other tokenizer)", "build it again"),
        (
            {"lengths": "x", "architecture": "y"},
            "the index was made with another model (other architecture, lengths)",
            "build it again",
        ),
        (
            {"arithmetic": "bfloat16", "weights": "w"},
            "the index was computed in float32, and the model computes in bfloat16",
            "load the model with `dtype` float32, or build the index again",
        ),
    ],
)
def test_an_index_of_another_model_is_refused(tmp_path, changes, problem, fix):
    folder, other = tmp_path / "i", Encoder(**changes)
    build_index(folder, TEXTS, Encoder())
    for call in (
        lambda: open_index(tmp_path / "i", scorer=other),
        lambda: add_to_index(tmp_path / "i", ["more"], other),
    ):
        with pytest.raises(InputError) as error:
            call()
        found = error.value.argument, error.value.problem, error.value.fix
        assert found == (str(folder), problem, fix)
    assert len(open_index(folder, scorer=Encoder())) == 6


@pytest.mark.parametrize("name", ["texts.bin", "ends.npy", "ids.npy", "vectors.npy"])
@pytest.mark.parametrize("damage", ["missing", "short", "empty"])
def test_a_damaged_index_is_one_line(tmp_path, name, damage):
    folder = tmp_path / "i"
    build_index(folder, TEXTS, Encoder())
    path = folder / "000000" / name
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:-3] if damage == "short" else b"")
    with pytest.raises(InputError, match="the index is broken") as caught:
        open_index(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 9}', '{"type": "Manifest", "version": 2}'])
def test_a_damaged_manifest_is_one_line(tmp_path, content):
    build_index(tmp_path, TEXTS, Encoder())
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json") as caught:
        open_index(tmp_path)
    assert "\n" not in str(caught.value)


def test_all_can_be_removed_and_then_others_added(tmp_path):
    build_index(tmp_path / "i", TEXTS, Encoder())
    remove(tmp_path / "i", range(6))
    with pytest.raises(InputError, match="add some before compacting"):
        compact(tmp_path / "i")
    assert add_to_index(tmp_path / "i", ["new"], Encoder()) == [6]
    assert content(open_index(tmp_path / "i")).keys() == {6}


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / "letters.txt").write_text("precious")
    with pytest.raises(InputError, match=r"is not an index \(letters\.txt is not a file of one"):
        build_index(tmp_path, TEXTS, Encoder())
    assert (tmp_path / "letters.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("202311/precious.jpg", "a photograph"),
        ("manifest.json", '{"name": "a web app", "icons": []}'),
        ("building/plan.pdf", "of a house"),
    ],
)
def test_names_like_an_index_s_are_not_enough(tmp_path, path, text):
    """A folder of months, a web app's manifest: nobody's index, and not to be cleared away."""
    precious = tmp_path / path
    precious.parent.mkdir(exist_ok=True)
    precious.write_text(text)
    with pytest.raises(InputError, match=rf"is not an index \(\S*{precious.name} is not a file of one"):
        build_index(tmp_path, TEXTS, Encoder())
    assert precious.read_text() == text


def test_what_lies_beside_an_index_is_left_alone(tmp_path):
    """A file manager's and NFS's own, or a reader's notes; what could be taken for a segment is refused."""
    folder = tmp_path / "i"
    build_index(folder, TEXTS[:4], Encoder())
    for name in (".DS_Store", "000000/.DS_Store", "000000/.nfs01", "notes.txt"):
        (folder / name).write_text("x")
    assert remove(folder, [0]) == 1
    assert add_to_index(folder, TEXTS, Encoder()) == [4, 1, 2, 3, 5, 6]
    assert compact(folder) == 1
    assert (folder / "notes.txt").exists() and (folder / ".DS_Store").exists()
    (folder / "202311").mkdir()
    (folder / "202311" / "precious.jpg").write_text("a photograph")
    with pytest.raises(InputError, match=r"202311/precious\.jpg is not a file of one"):
        remove(folder, [1])
    assert (folder / "202311" / "precious.jpg").exists()


def test_a_file_that_another_process_has_just_renamed_is_no_error(tmp_path, monkeypatch):
    folder = tmp_path / "i"
    build_index(folder, TEXTS[:4], Encoder())
    gone = folder / "manifest.json.partial"
    real = Path.iterdir
    monkeypatch.setattr(
        Path, "iterdir", lambda self: [*real(self), *([gone] if self == folder and not gone.exists() else [])]
    )
    changes.check_replaceable(folder)


def test_a_path_that_no_folder_can_have_is_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot be written: .*too long"):
        build_index(tmp_path / ("x" * 300), TEXTS, Encoder())


@pytest.mark.parametrize("ids", [[0, 10**20], np.array([0, 1.7]), [0, -1], [0, 4], [True, False]])
def test_ids_that_were_never_given_remove_nothing(tmp_path, ids):
    build_index(tmp_path / "i", TEXTS[:4], Encoder())
    with pytest.raises(InputError) as error:
        remove(tmp_path / "i", ids)
    assert error.value.argument in ("ids[0]", "ids[1]") and error.value.expected == "ids from 0 to 3"
    assert len(open_index(tmp_path / "i")) == 4
    assert remove(tmp_path / "i", np.array([1, 2])) == 2


@pytest.mark.parametrize("ids", [{1, 2}, {1: "a", 2: "b"}, (n for n in (1, 2)), range(1, 3)])
def test_ids_may_come_in_any_collection(tmp_path, ids):
    build_index(tmp_path / "i", TEXTS[:4], Encoder())
    assert remove(tmp_path / "i", ids) == 2


def test_a_text_with_a_nul_is_another_than_two_texts():
    assert len({text_digest(texts) for texts in (["a\0b"], ["a", "b"], ["a\0", "b"], ["ab"])}) == 4
    assert text_digest(["a", "é"]) == hashlib.sha256("a\0é\0".encode()).hexdigest(), "as indexes have it"


@pytest.mark.parametrize("text", ["", "{", '{"version": 9, "segments": [], "next_id": 3}'])
def test_a_build_over_an_index_that_cannot_be_read_keeps_it_until_the_end(tmp_path, text):
    folder = tmp_path / "i"
    build_index(folder, TEXTS[:4], Encoder())
    before = (folder / "000000" / "vectors.npy").read_bytes()
    (folder / "manifest.json").write_text(text)
    with pytest.raises(KeyboardInterrupt):
        build_index(folder, TEXTS, Encoder(stop_after=2))
    assert (folder / "000000" / "vectors.npy").read_bytes() == before
    assert (folder / "manifest.json").read_text() == text
    build_index(folder, TEXTS, Encoder())
    assert len(open_index(folder)) == 6
    assert {p.name for p in folder.iterdir()} == {"manifest.json", "000001", ".lock"}


def test_an_index_that_is_changed_while_it_is_opened_is_not_broken(tmp_path, monkeypatch):
    folder = tmp_path / "i"
    build_index(folder, TEXTS[:4], Encoder())
    read, calls = store.read_manifest, []

    def and_then_it_changed(path):
        manifest = read(path)
        calls.append(manifest)
        if len(calls) == 1:
            build_index(folder, TEXTS, Encoder())  # the segment of before is cleared away
        return manifest

    monkeypatch.setattr(store, "read_manifest", and_then_it_changed)
    assert len(open_index(folder)) == 6


@pytest.mark.parametrize("name", ["ids.npy", "norms.npy", "rounded.npy"])
def test_an_array_of_another_type_is_a_broken_index(tmp_path, name):
    build_index(tmp_path / "i", TEXTS, Encoder())
    path = tmp_path / "i" / "000000" / name
    np.save(path, np.load(path).astype(np.float16))
    with pytest.raises(InputError, match=f"broken .*{name} is float16 of shape"):
        open_index(tmp_path / "i")


def test_a_full_disk_is_one_line_before_anything_is_encoded(tmp_path, monkeypatch):
    """Without room of its own a memory-mapped file would end the process when it is written to."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    encoder = Encoder()
    with pytest.raises(InputError, match="cannot be written: .*No space left"):
        build_index(tmp_path / "i", TEXTS, encoder)
    assert not encoder.encoded


def test_two_writers_do_not_meet(tmp_path):
    with (
        changes.writing(tmp_path, new=True),
        pytest.raises(InputError, match="another process is writing the index"),
    ):
        build_index(tmp_path, TEXTS, Encoder())


@pytest.mark.parametrize(
    "change", [lambda f: remove(f, [0]), compact, lambda f: add_to_index(f, ["a"], Encoder())]
)
def test_a_change_of_no_index_leaves_nothing(tmp_path, change):
    with pytest.raises(InputError, match="there is no index yet"):
        change(tmp_path / "i")
    assert not (tmp_path / "i").exists()


def test_an_index_can_be_copied(tmp_path):
    build_index(tmp_path / "i", TEXTS, Encoder())
    shutil.copytree(tmp_path / "i", tmp_path / "copy")
    assert content(open_index(tmp_path / "copy")) == content(open_index(tmp_path / "i"))


def test_killed_while_compacting(tmp_path):
    """SIGKILL after every file that compacting writes: the index holds the same candidates, and compacts."""
    script = tmp_path / "compact.py"
    script.write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from polyjax.retrieval.index import change\n"
        "left = int(sys.argv[2])\n"
        "replace = os.replace\n"
        "def counted(*names):\n"
        "    global left\n"
        "    replace(*names)\n"
        "    left -= 1\n"
        "    if left == 0:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.replace = counted\n"
        "change.compact(Path(sys.argv[1]), rows_at_once=8)\n"
    )

    folder = tmp_path / "index"
    build_index(folder, [f"text {i}" for i in range(40)], Encoder())
    add_to_index(folder, [f"more {i}" for i in range(20)], Encoder())
    remove(folder, range(0, 60, 3))
    expected = dict(open_index(folder).items())
    killed = 0
    for after in range(1, 20):
        command = [sys.executable, str(script), str(folder), str(after)]
        process = subprocess.run(command, timeout=120, check=False)
        index = open_index(folder)
        assert dict(index.items()) == expected
        assert len(index.segments) in (1, 2) and index.rows == (40 if len(index.segments) == 1 else 60)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        killed += 1
        if len(index.segments) == 1:
            break
    assert killed >= 4 and len(open_index(folder).segments) == 1
