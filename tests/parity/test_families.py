"""Hidden states of every family equal transformers', from folders that it wrote (golden_encoders)."""

import numpy as np
import pytest
from flax import nnx

from conftest import golden_encoder, golden_encoders
from polyjax import Tokens
from polyjax.interop import huggingface

FOLDERS = (
    "bert",
    "bert_prefix_gamma",
    "bert_for_masked_lm",
    "bert_odd_config",
    "bert_sharded",
    "bert_fp16",
    "bert_bf16",
    "roberta",
    "xlm_roberta",
    "distilbert",
    "mpnet",
    "electra",
    "albert",
    "modernbert",
    "modernbert_classic",
    "deberta_v2",
    "nomic_bert",
    "gte",
)


@pytest.mark.parametrize("name", FOLDERS)
def test_hidden_states(name):
    folder, golden = golden_encoder(name)
    encoder = huggingface.read_config(folder).build(rngs=nnx.Rngs(0))
    huggingface.load_encoder_weights(encoder, folder)
    ids, mask = golden["input_ids"].astype(np.int32), golden["attention_mask"] == 1
    segments = golden.get("token_type_ids", np.zeros_like(ids)).astype(np.int32)
    hidden = np.asarray(encoder(Tokens(ids, mask, segments)))[mask]
    np.testing.assert_allclose(hidden, golden["hidden"], rtol=0, atol=5e-5)
    # Padding that a text spells out is a token, where positions may stand still.
    extra = golden["extra_input_ids"].astype(np.int32)[None]
    alone = encoder(Tokens(extra, np.ones_like(extra, bool), np.zeros_like(extra)))[0]
    np.testing.assert_allclose(alone, golden["extra_hidden"], rtol=0, atol=5e-5)


def test_no_folder_is_left_out():
    assert {path.name for path in golden_encoders("encoder")} == set(FOLDERS) | {"bert_vocab_txt_only"}
