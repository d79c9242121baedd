"""torch.save files without torch: exact on good ones, one clear line on all others."""

import io
import json
import os
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from polyjax import InputError
from polyjax.interop.parlai.model import load_parlai
from polyjax.interop.torch_file import read_torch_file

GOLDEN = Path(__file__).parents[1] / "golden" / "parlai"
ZIP = GOLDEN / "cross_prelayernorm_mean" / "model"
LEGACY = GOLDEN / "poly_codes64_fp16_legacy" / "model"


def archive(
    path: Path, data: bytes, members: dict[str, bytes], *, compress: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compress) as file:
        file.writestr("archive/data.pkl", data)
        for name, content in members.items():
            file.writestr(f"archive/{name}", content)
    return path


def pickled(storage_n: int, size: tuple, stride: tuple, *, offset: int = 0) -> bytes:
    """{"model": {"w": a tensor}} written by hand, protocol 2."""

    def number(n: int) -> bytes:
        return b"J" + struct.pack("<i", n)

    def tuple_of(numbers: tuple) -> bytes:
        return b"(" + b"".join(map(number, numbers)) + b"t"

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(storage_n)
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQ" + number(offset)
    tensor += tuple_of(size) + tuple_of(stride) + b"\x89" + b"ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text("model") + b"}" + text("w") + tensor + b"ss."


def test_both_formats_hold_finite_weights_of_the_recorded_shapes():
    for path in (ZIP, LEGACY):
        golden = json.loads((path.parent / "golden.json").read_text(encoding="utf-8"))
        weights = read_torch_file(path)["model"]
        assert {name: list(w.shape) for name, w in weights.items()} == {
            name: shape for name, (shape, _) in golden["state_dict"].items()
        }
        assert all(np.isfinite(w).all() for w in weights.values())
    assert read_torch_file(LEGACY)["model"]["codes"].dtype == np.float16


def test_a_tensor_written_by_hand_is_read(tmp_path):
    numbers = np.arange(6, dtype="<f4")
    path = archive(tmp_path / "m", pickled(6, (2, 2), (2, 1), offset=1), {"data/0": numbers.tobytes()})
    np.testing.assert_array_equal(read_torch_file(path)["model"]["w"], [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("size", "stride", "n", "message"),
    [
        ((10**9,), (0,), 6, "not contiguous"),
        ((7,), (1,), 6, "larger than its storage"),
        ((2, 3), (1, 2), 6, "not contiguous"),
        ((6,), (1,), 2**30, "holds 24 bytes"),
        ((-1,), (1,), 6, "something other than"),
    ],
)
def test_sizes_that_the_file_does_not_hold_are_refused(tmp_path, size, stride, n, message):
    path = archive(tmp_path / "m", pickled(n, size, stride), {"data/0": bytes(24)})
    with pytest.raises(InputError, match=message) as caught:
        read_torch_file(path)
    assert str(path) in str(caught.value)


class Exploit:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_in_a_file_is_run(tmp_path, protocol):
    marker = tmp_path / "executed"
    data = pickle.dumps({"model": OrderedDict(a=Exploit(marker))}, protocol)
    for path in (archive(tmp_path / "zip", data, {}), tmp_path / "plain"):
        if path.name == "plain":
            path.write_bytes(data)
        with pytest.raises(InputError, match="cannot be read as a torch file") as caught:
            read_torch_file(path)
        assert "\n" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04", b"\x80\x02}.", b"\x80\x02" + b"(" * 100_000, b"\x80\x02N."]
)
def test_other_files_are_named(tmp_path, content):
    path = tmp_path / "m"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a torch file"):
        read_torch_file(path)
    with pytest.raises(InputError) as caught:
        read_torch_file(tmp_path / "none")
    assert (caught.value.argument, caught.value.problem) == (str(tmp_path / "none"), "the file is missing")


def test_a_deep_nest_is_refused(tmp_path):
    deep = b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."
    with pytest.raises(InputError, match="nested too deeply"):
        read_torch_file(archive(tmp_path / "m", deep, {}))


def test_what_is_shared_is_read_once(tmp_path):
    """Sixty lists, each holding the one before twice: 2^60 elements to a reader that copies."""
    lists = b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60))
    data = b"\x80\x02(]q\x00" + lists + b"l."
    began = time.monotonic()
    assert len(read_torch_file(archive(tmp_path / "m", data, {}))) == 61
    assert time.monotonic() - began < 5


def test_a_compressed_archive_is_refused(tmp_path):
    bomb = archive(
        tmp_path / "m", pickled(6, (6,), (1,)), {"data/0": bytes(10**6)}, compress=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(InputError, match="compressed"):
        read_torch_file(bomb)


def test_five_hundred_corruptions_end_in_an_error_or_the_same_weights(tmp_path):
    """Bytes flipped, ends cut off, members missing: an error that names the file, never anything else.

    A flip that the file's checksums do not cover (in a legacy file's numbers, a zip's time stamps) may
    still give weights; nothing can tell them from the right ones.
    """
    draw = np.random.default_rng(0)
    errors = 0
    for i in range(500):
        source = ZIP if i % 2 else LEGACY
        content = bytearray(source.read_bytes())
        kind = i % 5
        if kind == 0:
            content = content[: draw.integers(len(content))]
        elif kind == 1 and source is ZIP:
            content = bytearray(_without_member(bytes(content), draw))
        else:
            # Half of the flips in the pickles, where they do the most.
            most = 15_000 if i % 4 < 2 else len(content)
            for place in draw.integers(0, most, int(draw.integers(1, 20))):
                content[place] ^= int(draw.integers(1, 256))
        path = tmp_path / "model"
        path.write_bytes(bytes(content))
        began = time.monotonic()
        try:
            read_torch_file(path)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            errors += 1
        assert time.monotonic() - began < 10
    assert errors > 350


def _without_member(content: bytes, draw: np.random.Generator) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        left_out = names[draw.integers(len(names))]
        for name in names:
            if name != left_out:
                new.writestr(name, old.read(name))
    return out.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({".opt": b"{"}, "model.opt: cannot be read as ParlAI's flags"),
        ({".opt": b"[1]"}, "model.opt: cannot be read"),
        ({".opt": None}, "model.opt: the file is missing"),
        ({".dict": None}, "model.dict: the file is missing"),
        ({".dict": b"a b\n"}, "model.dict:1: expected a token, a tab and a count"),
        ({".dict.codecs": None}, "model.dict.codecs: the file is missing"),
        ({".dict.codecs": b"#version: 0.2\na b c\n"}, "model.dict.codecs:2: expected two symbols"),
        ({"n_layers": 3}, "layers.2.attention.q_lin.weight is missing"),
        ({"n_layers": 1}, "more layers than the 1"),
        ({"n_heads": 7}, "n_heads: expected a divisor"),
        ({"model": "transformer/generator"}, "expected a model of transformer/biencoder"),
        ({"variant": "odd"}, "model.opt: variant: expected one of"),
        ({"n_layers": "two"}, "model.opt: n_layers: expected a whole number, got 'two'"),
        ({"person_tokens": True}, "person_tokens is set"),
        ({"dict_tokenizer": "gpt2"}, "dict_tokenizer: expected one of bpe, re, got 'gpt2'"),
    ],
)
def test_a_model_that_does_not_fit_its_flags_is_one_line(tmp_path, change, message):
    for path in ZIP.parent.glob("model*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    opt = json.loads((tmp_path / "model.opt").read_text())
    for name, value in change.items():
        if not name.startswith("."):
            (tmp_path / "model.opt").write_text(json.dumps(opt | {name: value}))
        elif value is None:
            (tmp_path / f"model{name}").unlink()
        else:
            (tmp_path / f"model{name}").write_bytes(value)
    with pytest.raises(InputError) as caught:
        load_parlai(tmp_path / "model")
    assert message in str(caught.value) and "\n" not in str(caught.value)
