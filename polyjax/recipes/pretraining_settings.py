"""Settings of a pre-training run, and their presets."""

import dataclasses
from pathlib import Path
from typing import Literal

from polyjax.data.corpora.packing import PretrainBatchConfig
from polyjax.data.corpora.prepare import CorpusConfig
from polyjax.data.tasks import task_named
from polyjax.data.text import TextConfig
from polyjax.errors import InputError
from polyjax.interop.hub import local_name
from polyjax.recipes.settings import SCRATCH, EncoderChoice
from polyjax.train.config import TrainConfig
from polyjax.train.optim import OptimConfig
from polyjax.train.pretraining import LossWeights


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyChoice:
    """The vocabulary of a pre-training run.

    Attributes:
        source: a folder with a tokenizer (tokenizer.json, sentencepiece.model, or that of a converted model),
            or a ParlAI dictionary (a ``.dict`` file with ``.opt`` and ``.dict.codecs`` beside it). By default
            a SentencePiece vocabulary is trained on the corpus. A pretrained encoder brings its own.
        size: number of pieces of the trained vocabulary.
        model: SentencePiece's model, ``unigram`` or ``bpe``.
        sample: number of turns of the corpus to train it on.
    """

    source: Path | None = None
    size: int = 8000
    model: Literal["unigram", "bpe"] = "unigram"
    sample: int = 500_000


PAPER_VOCABULARY = VocabularyChoice(size=54_000, model="bpe", sample=5_000_000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """All settings of a pre-training run.

    Attributes:
        preset: preset for the other settings: ``paper``, those of arXiv 1905.01969 §4.1 (Adam, inverse square
            root, a batch of 32,768 tokens for each of 32 GPUs), or ``small``, for a CPU.
        corpus: the training corpus.
        leave_out: tasks (or ``jsonl:PATH``) whose validation and test rows are excluded from the corpus, by
            hash; for their files see ``--corpus.task-dir`` and ``--corpus.unverified``.
        encoder: the transformer; ``--init-from`` starts from a pretrained one.
        vocabulary: the vocabulary.
        text: turns and lengths.
        batch: how pairs are drawn and tokens masked.
        loss: weights of the two losses.
        optim: optimiser and schedule.
        train: length, validation, checkpoints.
        validate_batches: maximum number of batches of held-out pairs to validate on.
        run_dir: the run directory; the same command resumes the run.
        tensorboard: also write TensorBoard event files (extra ``tensorboard``).
        mesh: devices, as for ``polyjax train``.
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
                "train.best_by", expected="loss: pre-training ranks nothing", got=self.train.best_by
            )
        if self.validate_batches < 1:
            raise InputError("validate_batches", expected="at least 1", got=self.validate_batches)
        for name in self.leave_out:
            task_named(name)  # raises for an unknown name
        self._check_used()
        if self.vocabulary.source is not None and self.encoder.name not in SCRATCH:
            raise InputError(
                "vocabulary.source",
                problem=f"`encoder` {self.encoder.name} brings its own vocabulary",
                fix="leave out one of them",
            )

    def _check_used(self) -> None:
        """Raise InputError for a setting that would have no effect."""
        text, optim, given = TextConfig(), OptimConfig(), self.vocabulary
        trained = VocabularyChoice() if self.preset == "small" else PAPER_VOCABULARY
        own = given.source is not None or self.encoder.name not in SCRATCH
        plateau = self.optim.decay == "plateau"
        unused = {
            "text.buckets": self.batch.packing and self.text.buckets != text.buckets,
            "text.padding": self.text.padding != text.padding,
            "text.layout": self.text.layout != text.layout,
            "train.validate_examples": self.train.validate_examples != TrainConfig().validate_examples,
            "optim.plateau_factor": not plateau and self.optim.plateau_factor != optim.plateau_factor,
            "optim.plateau_patience": not plateau and self.optim.plateau_patience != optim.plateau_patience,
            "vocabulary.size": own and given.size != trained.size,
            "vocabulary.model": own and given.model != trained.model,
            "vocabulary.sample": own and given.sample != trained.sample,
        }
        for name in (name for name, idle in unused.items() if idle):
            raise InputError(
                name,
                problem=f"does nothing with `batch.packing` {self.batch.packing}, `optim.decay` "
                f"{self.optim.decay}, `encoder` {self.encoder.name} and `vocabulary.source` {given.source}",
                fix="leave it out (pre-training validates on `validate_batches`)",
            )

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.run_dir or Path("runs") / f"pretraining-{self.preset}-{local_name(self.encoder.name)}"


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
