"""Pre-train an encoder: python experiments/pretrain.py --corpus pairs:FILES --encoder small"""

import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
from flax import nnx
from jax.sharding import Mesh

from polyjax.data.corpora.corpus import Pairs
from polyjax.data.corpora.leakage import HeldOut, held_out_of
from polyjax.data.corpora.packing import PretrainBatchConfig
from polyjax.data.corpora.prepare import (
    CorpusConfig,
    PreparedPiece,
    TaskPiece,
    corpus_identity,
    prepare_pieces,
    sampled_turns,
)
from polyjax.data.corpora.store import PreparedCorpus, tokens_of
from polyjax.data.tasks.registry import task_named
from polyjax.data.text import TextConfig
from polyjax.data.tokenizers import SENTENCEPIECE_FILE, Tokenizer, load_tokenizer, train_sentencepiece
from polyjax.errors import InputError
from polyjax.interop.parlai.model import load_dictionary
from polyjax.interop.pretrained import (
    PRETRAINING,
    LeftOut,
    PretrainingCard,
    check_vocabulary,
    encoder_shape,
    encoder_tokenizer,
    load_pretrainer,
    weights_folder,
)
from polyjax.mesh.placement import make_mesh, mesh_shape
from polyjax.mesh.processes import is_primary, primary_first
from polyjax.nn.encoders import EncoderConfig
from polyjax.nn.pretraining import Pretrainer
from polyjax.recipes.fit import tensorboard_log
from polyjax.recipes.plan import memory_line
from polyjax.recipes.pretraining_report import write_pretraining_report
from polyjax.recipes.settings import SCRATCH, EncoderChoice, scratch_shape
from polyjax.runs import Checkpoints, owned_run, read_json, write_json
from polyjax.runtime.compilation import enable_compilation_cache
from polyjax.runtime.progress import console
from polyjax.train.loop import TrainConfig, TrainResult, train
from polyjax.train.memory import device_memory, step_memory
from polyjax.train.optim import OptimConfig
from polyjax.train.pretraining import LossWeights, Pretraining

INCIDENTAL = (
    "run_dir",
    "tensorboard",
    "mesh",
    "corpus.dir",
    "corpus.beam_runner",
    "corpus.beam_options",
    "corpus.piece_parts",
    "batch.workers",
    "batch.chunk",
    "train.profile_steps",
)
"""Settings that change no result beyond rounding and the draws of dropout: a run may go on with others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyChoice:
    """Which vocabulary.

    Attributes:
        source: a folder with a tokenizer to use (tokenizer.json, sentencepiece.model, or that of a converted
            model), or a dictionary of ParlAI's (a ``.dict`` file, with ``.opt`` and ``.dict.codecs`` beside
            it); a SentencePiece vocabulary is trained from the corpus where none is given. An encoder that
            has weights brings its own.
        size: pieces of the trained vocabulary.
        model: SentencePiece's model, ``unigram`` or ``bpe``.
        sample: turns of the corpus to train it from.
    """

    source: Path | None = None
    size: int = 8000
    model: Literal["unigram", "bpe"] = "unigram"
    sample: int = 500_000


PAPER_VOCABULARY = VocabularyChoice(size=54_000, model="bpe", sample=5_000_000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that fixes a pre-training run.

    Attributes:
        preset: where the other settings' defaults come from: ``paper``, those of arXiv 1905.01969 §4.1 (Adam,
            inverse square root, a batch of 32,768 tokens for each of 32 GPUs), or ``small``, for a CPU.
        corpus: what to learn from.
        leave_out: tasks (or ``jsonl:PATH``) whose rows to validate and test on are left out of the corpus, by
            hash; ``--corpus.task-dir`` and ``--corpus.unverified`` are about their files.
        encoder: the transformer; ``--init-from`` goes on from one with weights.
        vocabulary: text to ids.
        text: turns and lengths.
        batch: how pairs are drawn and hidden.
        loss: weights of the two losses.
        optim: optimiser and schedule.
        train: length, validation, checkpoints.
        validate_batches: so many batches of held-out pairs are looked at.
        run_dir: where everything lands; the same command resumes it.
        tensorboard: also write TensorBoard event files (extra ``tensorboard``).
        mesh: devices, as in run.py.
    """

    preset: Literal["small", "paper"] = "small"
    corpus: CorpusConfig = CorpusConfig()
    leave_out: tuple[str, ...] = ()
    encoder: EncoderChoice = EncoderChoice(name="small")
    vocabulary: VocabularyChoice = VocabularyChoice()
    text: TextConfig = TextConfig()
    batch: PretrainBatchConfig = PretrainBatchConfig()
    loss: LossWeights = LossWeights()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig(best_by="loss")
    validate_batches: int = 20
    run_dir: Path | None = None
    tensorboard: bool = False
    mesh: str = ""

    def __post_init__(self) -> None:
        """Raise InputError for settings that contradict each other."""
        if self.train.best_by != "loss":
            raise InputError(
                f"--train.best-by {self.train.best_by}: pre-training has no ranking; choose loss"
            )
        if self.validate_batches < 1:
            raise InputError(f"--validate-batches must be at least 1, got {self.validate_batches}")
        for name in self.leave_out:
            task_named(name)  # raises where there is none
        self._check_used()
        if self.vocabulary.source is not None and self.encoder.name not in SCRATCH:
            raise InputError(
                f"--vocabulary.source {self.vocabulary.source}: --encoder {self.encoder.name} brings its own "
                "vocabulary; leave one of them out"
            )

    def _check_used(self) -> None:
        """Raise InputError for a setting that is given and would do nothing."""
        text, optim, given = TextConfig(), OptimConfig(), self.vocabulary
        trained = VocabularyChoice() if self.preset == "small" else PAPER_VOCABULARY
        own = given.source is not None or self.encoder.name not in SCRATCH
        plateau = self.optim.decay == "plateau"
        unused = {
            "text.buckets": self.batch.packing and self.text.buckets != text.buckets,
            "text.padding": self.text.padding != text.padding,
            "text.layout": self.text.layout != text.layout,
            "train.validate-examples": self.train.validate_examples != TrainConfig().validate_examples,
            "optim.plateau-factor": not plateau and self.optim.plateau_factor != optim.plateau_factor,
            "optim.plateau-patience": not plateau and self.optim.plateau_patience != optim.plateau_patience,
            "vocabulary.size": own and given.size != trained.size,
            "vocabulary.model": own and given.model != trained.model,
            "vocabulary.sample": own and given.sample != trained.sample,
        }
        for name in (name for name, idle in unused.items() if idle):
            raise InputError(
                f"--{name} does nothing with --batch.packing {self.batch.packing}, --optim.decay "
                f"{self.optim.decay}, --encoder {self.encoder.name} and --vocabulary.source {given.source}; "
                "leave it out (pre-training validates on --validate-batches)"
            )

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.run_dir or Path("runs") / f"pretraining-{self.preset}-{Path(self.encoder.name).name}"


def small() -> PretrainConfig:
    """An encoder of 4 layers x 256 in about 20 minutes on two cores."""
    return PretrainConfig(
        encoder=EncoderChoice(name="small", dropout=0.1),
        text=TextConfig(max_turns=4, context_tokens=96, candidate_tokens=33),
        batch=PretrainBatchConfig(tokens=8192),
        optim=OptimConfig(
            learning_rate=1e-3, weight_decay=0.01, head_rate=1.0, warmup=0.1, decay="linear", b2=0.98
        ),
        train=TrainConfig(steps=2000, validate_every_steps=500, best_by="loss"),
    )


def paper() -> PretrainConfig:
    """The paper's pre-training: 12 layers x 768, Adam at 2e-4, 32,768 tokens for each of 32 GPUs."""
    return PretrainConfig(
        preset="paper",
        encoder=EncoderChoice(name="paper", dropout=0.1, attention_dropout=0.1),
        vocabulary=PAPER_VOCABULARY,
        text=TextConfig(max_turns=20, context_tokens=384, candidate_tokens=129),
        batch=PretrainBatchConfig(tokens=32 * 32_768),
        optim=OptimConfig(
            learning_rate=2e-4,
            weight_decay=0.0,
            head_rate=1.0,
            warmup_steps=10_000,
            decay="inverse-sqrt",
            b2=0.98,
        ),
        train=TrainConfig(steps=500_000, validate_every_steps=5_000, save_every_steps=1000, best_by="loss"),
    )


PRESETS = {"small": small, "paper": paper}


def make_tokenizer(
    config: PretrainConfig,
    source: Path | None,
    pieces: Sequence[PreparedPiece | TaskPiece],
    excluded: HeldOut,
) -> Tokenizer:
    """The run directory's tokenizer, put there first where it is absent."""
    folder = config.folder / "tokenizer"
    folder.mkdir(exist_ok=True)
    if not any(path.name == SENTENCEPIECE_FILE or path.suffix == ".json" for path in folder.iterdir()):
        if source is not None:
            encoder_tokenizer(source).save(folder)
        elif (given := config.vocabulary.source) is not None:
            of_parlai = given.suffix == ".dict"
            (load_dictionary(given.with_suffix("")) if of_parlai else load_tokenizer(given)).save(folder)
        else:
            console.print(f"training a SentencePiece vocabulary of {config.vocabulary.size} pieces")
            train_sentencepiece(
                sampled_turns(pieces, config.vocabulary.sample, excluded=excluded),
                folder / SENTENCEPIECE_FILE,
                vocab_size=config.vocabulary.size,
                kind=config.vocabulary.model,
                seed=config.train.seed,
                flag="--vocabulary.size",
            )
    return load_tokenizer(folder)


def encoder_config(config: PretrainConfig, source: Path | None, vocab_size: int) -> EncoderConfig:
    """The transformer's shape, with the run's arithmetic and dropout."""
    base = scratch_shape(config.encoder.name, vocab_size) if source is None else encoder_shape(source)
    return config.encoder.applied_to(base)


def check_corpus(run_dir: Path, files: str) -> None:
    """Before anything is prepared: whether the corpus's files are those that the run began with.

    Before its first checkpoint a run begins anew with what they hold now, and a vocabulary of that.

    Args:
        run_dir: of the run.
        files: see ``corpus_identity``.

    Raises:
        InputError: they are not, and the run has learnt from them.
    """
    path = run_dir / CORPUS
    if not path.exists() or read_json(path).get("files") == files:
        return
    if any((run_dir / "checkpoints").glob("[0-9]*")):
        raise InputError(CHANGED.format(run_dir))
    console.print("the corpus has changed; its vocabulary is learnt anew")
    path.unlink()
    shutil.rmtree(run_dir / "tokenizer", ignore_errors=True)


def note_corpus(run_dir: Path, files: str, state: str) -> None:
    """Write down what a run learns from; raise InputError where it went on with another corpus."""
    path = run_dir / CORPUS
    begun = any((run_dir / "checkpoints").glob("[0-9]*"))
    if begun and path.exists() and read_json(path).get("state") != state:
        raise InputError(CHANGED.format(run_dir))
    if is_primary():
        write_json(path, {"files": files, "state": state})


CORPUS = "corpus.json"
CHANGED = "{}: the corpus has changed since this run began; restore its files, or choose another --run-dir"


def prepare(config: PretrainConfig, source: Path | None) -> tuple[Tokenizer, PreparedCorpus, list[LeftOut]]:
    """The tokenizer, the corpus's tokens, and what was left out; made first where they are not there."""
    files = corpus_identity(config.corpus)
    check_corpus(config.folder, files)
    excluded, left_out = HeldOut(), []
    for name in config.leave_out:
        found = held_out_of(config.corpus.task(name))
        excluded |= found
        left_out.append(LeftOut(task=name, digest=found.digest))
    pieces = prepare_pieces(config.corpus)
    tokenizer = make_tokenizer(config, source, pieces, excluded)
    folder = config.folder / "tokenizer"
    corpus = tokens_of(config.corpus, tokenizer, folder, pieces=pieces, excluded=excluded)
    note_corpus(config.folder, files, corpus.state)
    return tokenizer, corpus, left_out


def run(config: PretrainConfig) -> TrainResult:
    """Prepare, train (or go on), and write the report."""
    enable_compilation_cache()
    source, mesh = weights_folder(config.encoder.name, scratch=SCRATCH), make_mesh(config.mesh)
    with owned_run(config.folder, config, incidental=INCIDENTAL):
        return pretrain(config, source, mesh)


def pretrain(config: PretrainConfig, source: Path | None, mesh: Mesh) -> TrainResult:
    """The run itself, in a run directory that is this run's own."""
    began = time.monotonic()
    with primary_first("corpus"):
        tokenizer, corpus, left_out = prepare(config, source)
    shape = encoder_config(config, source, tokenizer.vocab_size)
    check_vocabulary(tokenizer, shape, name=config.encoder.name)
    config.text.check_positions(shape.n_positions, paired=True)
    if shape.n_segments < 2:
        raise InputError(f"--encoder {config.encoder.name} has {shape.n_segments} segments; pairs need two")
    train_pairs = Pairs(corpus.train, config.text, tokenizer, most_tokens=config.corpus.tokens)
    held_out = Pairs(corpus.valid, config.text, tokenizer)
    counts = (
        f"{len(train_pairs):,} pairs to learn from, {len(held_out):,} to validate on; {corpus.left_out:,} "
        f"conversations left out{' (' + ', '.join(config.leave_out) + ')' if config.leave_out else ''}"
    )
    console.print(counts)
    if is_primary():
        card = PretrainingCard(encoder=shape, text=config.text, left_out=tuple(left_out))
        write_json(config.folder / PRETRAINING, card)
    model = Pretrainer(shape, rngs=nnx.Rngs(config.train.seed))
    if source is not None:
        load_pretrainer(model, source)
    n_parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))
    console.print(
        f"{n_parameters / 1e6:.1f} M parameters, {shape.dtype}; mesh {mesh_shape(mesh)}; "
        f"run directory {config.folder}"
    )
    objective = Pretraining(
        model,
        train_pairs,
        held_out,
        batch=config.batch,
        weights=config.loss,
        validate_batches=config.validate_batches,
        mesh=mesh,
    )
    if not Checkpoints(config.folder).latest_step:  # a run that goes on has shown that it fits
        with console.status("compiling a step, for its memory"):
            memory = step_memory(objective, config.optim, config.train)
        console.print(memory_line(f"{config.batch.chunk or config.batch.tokens:,} tokens at once", memory))
        if memory.total > device_memory()[0]:
            console.print(f"it does not fit; {objective.at_once[1]}")
    with tensorboard_log(config.folder, wanted=config.tensorboard) as log:
        outcome = train(objective, config.folder, optim=config.optim, config=config.train, on_log=log)
    if is_primary():
        notes = [
            f"corpus: {', '.join(config.corpus.files)}; {counts}",
            f"training: {outcome.steps} updates of {config.batch.tokens:,} tokens in {outcome.seconds:.0f} s "
            f"(validations included), ended by: {outcome.stopped_by}; seed {config.train.seed}",
            f"programs compiled: {outcome.compilations}; whole command: {time.monotonic() - began:.0f} s",
        ]
        write_pretraining_report(config.folder, notes)
        console.print(f"report: {config.folder / 'report.md'}")
        console.print(f"fine-tune it: python experiments/run.py --arch poly --init-from {config.folder}")
    return outcome
