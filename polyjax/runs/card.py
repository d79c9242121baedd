"""A run directory's model: its card, and the model that card and checkpoints describe."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from polyjax.config import Foreign, from_json, to_json
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.data.tokenizers import Tokenizer, load_tokenizer
from polyjax.inference.score_map import ScoreMap
from polyjax.nn.abstract import abstract_model
from polyjax.nn.encoders import Dtype, KnownEncoder
from polyjax.nn.scorers import ModelConfig, Scorer, make_scorer
from polyjax.runs.checkpoints import Checkpoints
from polyjax.runs.layout import CONFIG, MODEL, PRETRAINING, TOKENIZER, read_json, write_json
from polyjax.runtime.files import new_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What model.json holds: the model's shape and how texts become its tokens.

    Attributes:
        model: its shape.
        text: how texts become its tokens.
        scores: the map from scores to probabilities, fitted on validation rows; None if none was fitted.
    """

    FILE: ClassVar[str] = MODEL
    model: ModelConfig
    text: TextConfig
    scores: ScoreMap | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A task whose rows to validate and test on were left out of a corpus.

    Attributes:
        task: its name.
        digest: of those rows, see ``HeldOut.digest``.
    """

    task: str
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingCard:
    """What pretraining.json holds.

    Attributes:
        encoder: the shape.
        text: lengths that it was trained with.
        left_out: what was left out of the corpus.
    """

    FILE: ClassVar[str] = PRETRAINING
    encoder: KnownEncoder
    text: TextConfig
    left_out: tuple[LeftOut, ...] = ()


def read_card(
    run_dir: Path,
    *,
    head: Any = None,
    encoder: Any = None,
    foreign: Foreign = Foreign(),  # noqa: B008  # frozen
) -> ModelCard:
    """The shape and text settings of a run directory's model.

    Args:
        run_dir: the run directory.
        head: the user's own part that the card records; see ``polyjax.config.from_json``.
        encoder: likewise.
        foreign: parts that need not be given; see ``polyjax.config.from_json``.

    Raises:
        InputError: model.json is missing or broken, or records a part that is not given.
    """
    path, parts = run_dir / MODEL, {"head": head, "encoder": encoder}
    return from_json(ModelCard, read_json(path), source=str(path), parts=parts, foreign=foreign)


def write_score_map(run_dir: Path, scores: ScoreMap | None) -> None:
    """Record in a run's card the map from scores to probabilities.

    Args:
        run_dir: the run directory.
        scores: as ``fit_score_map`` gives it.

    Raises:
        InputError: model.json is missing or broken.
    """
    path = run_dir / MODEL
    write_json(path, read_json(path) | {"scores": to_json(scores)})


def write_card(run_dir: Path, card: ModelCard | PretrainingCard, tokenizer: Tokenizer) -> None:
    """Write what a loader needs besides checkpoints: the card, and the tokenizer.

    Args:
        run_dir: exists.
        card: of the model.
        tokenizer: saved with it.
    """
    (run_dir / TOKENIZER).mkdir(exist_ok=True)
    tokenizer.save(run_dir / TOKENIZER)
    write_json(run_dir / card.FILE, card)


def write_model(run_dir: Path, scorer: Scorer, card: ModelCard, tokenizer: Tokenizer, *, config: Any) -> None:
    """Make a run directory of a model that was not trained here; complete or not at all.

    Args:
        run_dir: must not exist yet.
        scorer: its parameters become step 0.
        card: the model's shape and text settings.
        tokenizer: saved with it.
        config: what config.json says about where the model comes from.

    Raises:
        InputError: the directory exists, or cannot be written.
    """
    with new_folder(run_dir) as aside:
        write_json(aside / CONFIG, config)
        write_card(aside, card, tokenizer)
        Checkpoints(aside).save_parameters(scorer)


def load_scorer(
    run_dir: Path,
    *,
    step: int | None = None,
    dtype: Dtype | None = None,
    head: Any = None,
    encoder: Any = None,
    foreign: Foreign = Foreign(),  # noqa: B008  # frozen
) -> tuple[Scorer, TextEncoder]:
    """The scorer of a run directory with its best (or a given) step's parameters, and its text encoder.

    Args:
        run_dir: the run directory.
        step: a saved step; the best one by default.
        dtype: of the encoders' arithmetic; as the model was made by default.
        head: the user's own part that the card records: its class or its settings.
        encoder: likewise.
        foreign: as for ``read_card``.

    Raises:
        InputError: a file of the run directory is missing or broken, or model.json records a part that is not
            given.
    """
    card = read_card(run_dir, head=head, encoder=encoder, foreign=foreign)
    tokenizer = load_tokenizer(run_dir / TOKENIZER)
    shape = card.model.encoder if dtype is None else dataclasses.replace(card.model.encoder, dtype=dtype)
    abstract = abstract_model(lambda rngs: make_scorer(shape, card.model.head, rngs=rngs))
    scorer = Checkpoints(run_dir, read_only=True).restore_parameters(abstract, step)
    return scorer, TextEncoder(tokenizer, card.text)
