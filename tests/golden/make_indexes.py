"""Indexes of format 5, as polyjax 0.x wrote them: python make_indexes.py, with a polyjax of before format 6.

They are opened by tests of later versions, which must recognise the models that made them. Each folder is one
model's; scores.json holds what a search for "hi there" found.
"""

import json
from pathlib import Path

from polyjax import Ranker

HERE = Path(__file__).parent
TEXTS = ["yes", "Yes", "no way", "no way ", "of\ncourse", "naïve ☕"]
DTYPES = {"bi_shared_max_trained": "float32", "poly_codes64_fp16_legacy": "int8", "minilm": "bfloat16"}

found = {}
for name, dtype in DTYPES.items():
    parlai = HERE / "parlai" / name / "model"
    ranker = Ranker.from_parlai(parlai) if parlai.exists() else Ranker.from_encoder(name)
    ranker.index(TEXTS, HERE / "indexes" / name, dtype=dtype)
    found[name] = {one.id: one.score for one in ranker.search("hi there", len(TEXTS))}
(HERE / "indexes" / "scores.json").write_text(json.dumps(found, indent=1) + "\n")
