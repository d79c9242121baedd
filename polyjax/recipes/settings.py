"""Settings of a run: nested configurations, which Python callers pass and the command line shows as flags."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import tyro

from polyjax.config import RecordedPart
from polyjax.data.batches import BatchConfig
from polyjax.data.rows import RankConfig
from polyjax.data.tasks import Task, TaskConfig
from polyjax.data.tasks.chitchat import ChitchatConfig
from polyjax.data.text import TextConfig
from polyjax.errors import InputError
from polyjax.interop.hub import local_name
from polyjax.nn.encoders import Dtype, EncoderConfig, EncoderSettings
from polyjax.nn.heads import GatedSettings, HeadConfig, HeadSettings, Inputs, PolyConfig
from polyjax.train.config import TrainConfig
from polyjax.train.losses import LossConfig, SoftmaxLoss
from polyjax.train.optim import OptimConfig

Arch = Literal["bi", "poly", "cross"]
PresetName = Literal["demo", "long"]
Shape = TypeVar("Shape")
DEFAULT_PRESET: PresetName = "demo"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderChoice:
    """The transformer, and how it is computed.

    Attributes:
        name: ``minilm`` (all-MiniLM-L6-v2, pretrained); ``paper``, ``small`` or ``tiny`` (from scratch); or
            the path of a folder of sentence-transformers or transformers, whose settings are used as far as
            the architecture allows, or of a pre-training run. ``--init-from`` is another name of this flag.
        dtype: dtype of the computation; parameters, scores and losses are float32.
        dropout: dropout rate in training.
        attention_dropout: dropout rate of attention weights in training.
        output_scaling: multiplies the hidden states.
        remat: recompute blocks in the backward pass to save memory.
        remat_keeps: what to keep of recomputed blocks: ``nothing``, or the results of matrix ``products``.
        scan: compile one block and loop over it.
    """

    name: Annotated[str, tyro.conf.arg(name="encoder", prefix_name=False)] = "minilm"
    dtype: Dtype = "bfloat16"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    output_scaling: float = 1.0
    remat: bool = False
    remat_keeps: Literal["nothing", "products"] = "nothing"
    scan: bool = False

    def applied_to(self, shape: Shape) -> Shape:
        """A transformer's settings, of any family, with this dtype, dropout and so on."""
        chosen = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "name"}
        return dataclasses.replace(cast(Any, shape), **chosen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerChoice:
    """The tokenizer.

    Attributes:
        kind: ``pretrained``, the encoder's own; ``sentencepiece``, trained on the task's training turns
            (needs an encoder from scratch).
        vocab_size: number of pieces of a SentencePiece vocabulary.
        model: SentencePiece's model, ``unigram`` or ``bpe``.
    """

    kind: Annotated[
        Literal["pretrained", "sentencepiece"], tyro.conf.arg(name="tokenizer", prefix_name=False)
    ] = "pretrained"
    vocab_size: int = 8000
    model: Literal["unigram", "bpe"] = "unigram"


def _named(model: str | Path | None) -> str | None:
    """A model's name as a run records it: a path in its plainest form, which a resumed run compares."""
    return None if model is None else str(Path(model))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The teachers of a student model, and the negatives that they score.

    Attributes:
        models: run directories, folders of other libraries or models of the hub (bi-, poly- or
            cross-encoders); several have equal weight. Without any, the rows must have a teacher's
            ``scores``.
        miner: the bi- or poly-encoder that mines negatives, named like a teacher; by default the first
            teacher that can search, else the model that the student starts from.
        n_negatives: number of negatives to mine for each row, in addition to its own; 0 for none.
        range_max: mined negatives are drawn from this many of the best wrong candidates.
        digests: digests of teachers that a Python caller has in memory.
    """

    models: Annotated[
        tuple[str | Path, ...],
        tyro.conf.arg(name="teacher", prefix_name=False, metavar="[MODEL [MODEL ...]]"),
    ] = ()
    miner: Annotated[str | Path | None, tyro.conf.arg(metavar="MODEL")] = None
    n_negatives: int = 8
    range_max: int = 32
    digests: tyro.conf.Suppress[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Write paths in one form, and raise InputError for an invalid value."""
        object.__setattr__(self, "models", tuple(map(_named, self.models)))
        object.__setattr__(self, "miner", _named(self.miner))
        if self.n_negatives < 0:
            raise InputError("teacher.n_negatives", expected="0 (none) or more", got=self.n_negatives)
        if self.range_max < self.n_negatives:
            expected = f"at least `teacher.n_negatives` ({self.n_negatives})"
            raise InputError("teacher.range_max", expected=expected, got=self.range_max)

    @property
    def mines(self) -> bool:
        """Whether negatives are mined; this needs a teacher to score them."""
        return bool(self.n_negatives and (self.models or self.digests))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuideConfig:
    """The guide, a model that finds in-batch negatives that are right answers, so that they are masked.

    Attributes:
        model: a bi-encoder: a run directory, a folder or a model of the hub; None for no guide.
        margin: a negative's dot product (cosine if vectors have length 1) must be at least this much below
            that of the row's own label.
        relative: whether the margin is a share of the absolute value of the label's product.
    """

    model: Annotated[str | Path | None, tyro.conf.arg(name="guide", prefix_name=False, metavar="MODEL")] = (
        None
    )
    margin: float = 0.0
    relative: bool = False

    def __post_init__(self) -> None:
        """Write a path in one form, and raise InputError for an invalid value."""
        object.__setattr__(self, "model", _named(self.model))
        if not (0 <= self.margin < math.inf):
            raise InputError("guide.margin", expected="a number of at least 0", got=self.margin)
        if self.model is None and (self.margin or self.relative):
            raise InputError(
                "guide.margin", problem="has no effect without a `guide`", fix="name a bi-encoder"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a run.

    Attributes:
        arch: scoring architecture, that of ``head``.
        preset: preset for the other settings; see experiments/README.md.
        recipe: a recipe of the paper instead of a preset, TASK-ARCH or TASK-ARCH-bert.
        task: the data set; ``--task NAME`` chooses it.
        encoder: the transformer.
        tokenizer: the tokenizer.
        text: turns, lengths and buckets.
        head: the scoring head of the architecture. ``--head NAME`` chooses a cross-encoder's: ``gated``,
            which starts as a bi-encoder, or ``joint``, the paper's.
        loss: the loss; ``--loss NAME`` chooses it.
        teacher: the model whose scores are learnt; None for no teacher.
        guide: the model that finds false negatives among the labels of a batch.
        batch: how training batches are drawn.
        optim: optimiser and schedule.
        train: length, validation, checkpoints.
        rank: candidates among which the labels of validation and test rows are ranked.
        run_dir: the run directory; by default runs/TASK-ARCH-ENCODER, with another preset than the default
            runs/TASK-PRESET-ARCH-ENCODER; a student's ends in -distilled. The same command resumes the run.
        init: start from the model of this run directory (``polyjax convert`` creates one from a ParlAI model)
            instead of ``--encoder``: its architecture, text settings, tokenizer and parameters. With ``arch``
            cross and the run of a bi- or poly-encoder, a cross-encoder starts from its encoder and scale.
        test_examples: test on at most this many rows, always the same ones; 0 for all.
        tensorboard: also write TensorBoard event files (extra ``tensorboard``).
        tokens_dir: folder to keep ids of the training texts in, for the next run with the same tokenizer.
        mesh: devices on the axes ``data`` (rows of a batch), ``fsdp`` (rows, and parameters) and ``model``
            (large matrices), as ``data=4,fsdp=2``; by default all on data.
        dry_run: print what the run would do (model, steps, memory), and stop.
        own_encoder: your own encoder settings, instead of ``encoder``.
        own_optimizer: your own function (OptimConfig, steps) -> optax transformation.
    """

    arch: str = "poly"
    preset: PresetName = DEFAULT_PRESET
    recipe: str = ""
    task: TaskConfig | Task | RecordedPart = ChitchatConfig()
    encoder: EncoderChoice = EncoderChoice()
    tokenizer: TokenizerChoice = TokenizerChoice()
    text: TextConfig = TextConfig()
    head: HeadConfig | HeadSettings | RecordedPart = PolyConfig()
    loss: LossConfig | Callable[..., Any] | RecordedPart = SoftmaxLoss()
    teacher: TeacherConfig | None = None
    guide: GuideConfig = GuideConfig()
    batch: BatchConfig = BatchConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    rank: RankConfig = RankConfig()
    run_dir: Path | None = None
    init: Path | None = None
    test_examples: int = 0
    tensorboard: bool = False
    tokens_dir: Path | None = Path("data/tokens")
    mesh: str = ""
    dry_run: bool = False
    own_encoder: EncoderSettings | RecordedPart | None = None
    own_optimizer: Callable[..., Any] | RecordedPart | None = None

    def __post_init__(self) -> None:
        """Raise InputError for settings that contradict each other."""
        if self.test_examples < 0:
            raise InputError("test_examples", expected="0 (all) or more", got=self.test_examples)
        if self.init is not None and (self.encoder.name, self.tokenizer.kind) != (INIT, "pretrained"):
            raise InputError(
                "init",
                problem=f"the model of {self.init} brings its own encoder and tokenizer",
                fix="leave `encoder` and `tokenizer` out",
            )
        if not isinstance(self.head, RecordedPart):
            self._check_used()
            if isinstance(self.head, GatedSettings) and self.text.pairs != "apart":
                raise InputError("text.pairs", expected="apart, for a head with gates", got=self.text.pairs)
        scratch = self.encoder.name in SCRATCH or self.own_encoder is not None
        if self.tokenizer.kind == "sentencepiece" and not scratch:
            raise InputError(
                "tokenizer",
                expected="pretrained: the weights of `encoder` belong to their own vocabulary",
                got=self.tokenizer.kind,
                fix=f"choose an `encoder` from scratch: {' or '.join(SCRATCH)}",
            )

    def _check_used(self) -> None:
        """Raise InputError for a setting that would have no effect."""
        batch, optim = BatchConfig(), OptimConfig()
        source = self.batch.source(self.inputs)
        linear = self.optim.decay != "plateau"
        drawn = self.rank.candidates in ("sampled", "batch")
        unused = {
            # A cross-encoder's presets have other values than the default.
            "batch.n_negatives": source != "sampled"
            and self.inputs == "dual"
            and self.batch.n_negatives != batch.n_negatives,
            "batch.mask_duplicates": source == "sampled"
            and self.batch.mask_duplicates != batch.mask_duplicates,
            "guide": self.guide.model is not None and (source != "batch" or self.inputs != "dual"),
            "rank.n": not drawn and self.rank.n != RankConfig().n,
            "rank.seed": not drawn and self.rank.seed != RankConfig().seed,
            "optim.plateau_factor": linear and self.optim.plateau_factor != optim.plateau_factor,
            "optim.plateau_patience": linear and self.optim.plateau_patience != optim.plateau_patience,
            "optim.warmup": bool(self.optim.warmup_steps) and self.optim.warmup not in (0.0, optim.warmup),
            "tokenizer.vocab_size": self.tokenizer.kind == "pretrained"
            and self.tokenizer.vocab_size != TokenizerChoice().vocab_size,
        }
        for name in (name for name, idle in unused.items() if idle):
            raise InputError(
                name,
                problem=f"does nothing with `arch` {self.arch}, `batch.candidates` {self.batch.candidates}, "
                f"`rank.candidates` {self.rank.candidates}, `optim.decay` {self.optim.decay} and `tokenizer` "
                f"{self.tokenizer.kind}",
                fix="leave it out",
            )

    @property
    def scoring(self) -> HeadSettings:
        """The head's settings.

        Raises:
            InputError: the head is the user's own and was not passed.
        """
        if isinstance(self.head, RecordedPart):
            raise InputError(
                "head", problem=f"the run's head is one of your own ({self.head})", fix="pass it"
            )
        return self.head

    @property
    def given_optimizer(self) -> Callable[..., Any] | None:
        """The user's own optimiser, if one was passed."""
        return None if isinstance(self.own_optimizer, RecordedPart) else self.own_optimizer

    @property
    def own_parts(self) -> dict[str, Any]:
        """The user's own parts of the model, as arguments of ``load_scorer``."""
        head = None if isinstance(self.head, HeadConfig) else self.head
        return {"head": head, "encoder": self.own_encoder}

    @property
    def inputs(self) -> Inputs:
        """The input of the scorer: texts encoded separately (``dual``) or in pairs (``pairs``)."""
        return self.scoring.inputs

    @property
    def dataset(self) -> Task:
        """The task.

        Raises:
            InputError: the task is the user's own and was not passed.
        """
        if isinstance(self.task, RecordedPart):
            raise InputError(
                "task",
                problem=f"the run's task is one of your own ({self.task})",
                fix="pass rows, a file or the task",
            )
        return self.task

    @property
    def folder(self) -> Path:
        """The run directory."""
        source = local_name(self.encoder.name) if self.init is None else self.init.name
        preset = "" if self.preset == DEFAULT_PRESET else f"-{self.preset}"
        kind = self.recipe or f"{self.dataset.name}{preset}-{self.arch}"
        taught = "" if self.teacher is None else "-distilled"
        return self.run_dir or Path("runs") / f"{kind}-{source}{taught}"


SCRATCH = ("paper", "small", "tiny")


def scratch_shape(name: str, vocab_size: int) -> EncoderConfig:
    """The settings of an encoder in SCRATCH."""
    makers = {"paper": EncoderConfig.paper, "small": EncoderConfig.small, "tiny": EncoderConfig.tiny}
    return makers[name](vocab_size)


INIT = "init"
"""The name of the encoder if ``init`` provides it."""
