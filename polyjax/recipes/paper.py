"""The paper's fine-tuning recipes, by name: polyjax train --recipe convai2-poly --dry-run

The settings are those of the paper's project page (ParlAI, projects/polyencoder/README.md), the same for all
tasks. A recipe starts from the transformer that ``--init`` names: the paper's, pre-trained on Reddit and
converted with ``polyjax convert parlai``. Without ``--init`` it trains from scratch. A recipe ending in
``-bert`` starts from a BERT-family folder, ``--encoder FOLDER``.

polyjax differs from the paper in three ways. The warm-up reaches the full rate (ParlAI's stops one step
short). Copies of a label are not used as negatives (``--batch.no-mask-duplicates`` uses them, as the paper
does). Half precision is bfloat16, not float16.
"""

from typing import Literal, get_args

from polyjax.data.batches import BatchConfig
from polyjax.data.tasks import TaskConfig, task_named
from polyjax.data.tasks.dstc7 import DSTC7Config
from polyjax.data.text import TextConfig
from polyjax.errors import InputError
from polyjax.nn.heads import BiConfig, CrossConfig, HeadConfig, PolyConfig
from polyjax.recipes.settings import Arch, EncoderChoice, RunConfig, TokenizerChoice
from polyjax.train.config import TrainConfig
from polyjax.train.optim import OptimConfig

PaperTask = Literal["convai2", "dstc7", "ubuntu_v2", "wikipedia_search"]
RECIPES: dict[str, tuple[PaperTask, Arch, bool]] = {
    f"{task}-{arch}{'-bert' if bert else ''}": (task, arch, bert)
    for task in get_args(PaperTask)
    for arch in get_args(Arch)
    for bert in (False, True)
}
"""For each recipe: task, architecture, and whether it starts from BERT."""

TRAINING_ROWS: dict[PaperTask, int] = {
    "convai2": 131_438,
    "dstc7": 100_000,
    "ubuntu_v2": 1_000_000,
    "wikipedia_search": 5_035_182,
}
"""Number of rows in the official training files, according to the tasks' papers and ParlAI."""

BATCH = {"bi": 512, "poly": 256, "cross": 16}
EPOCHS = {"bi": 10.0, "poly": 8.0, "cross": 12.0}
WARMUP = {"bi": 100, "poly": 100, "cross": 1000}
VALIDATE_EXAMPLES = {"bi": 8000, "poly": 8000, "cross": 2500}
VOCABULARY = 54_944
"""Size of the vocabulary of the paper's own transformers."""


def recipe(name: str) -> RunConfig:
    """The settings of a recipe.

    Raises:
        InputError: no recipe has that name.
    """
    if name not in RECIPES:
        raise InputError(
            "recipe", expected=f"TASK-ARCH or TASK-ARCH-bert, one of {', '.join(RECIPES)}", got=name
        )
    task, arch, bert = RECIPES[name]
    text = TextConfig(
        max_turns=20, context_tokens=360, candidate_tokens=72, buckets=(24, 48, 72, 128, 192, 256, 360, 432)
    )
    return RunConfig(
        arch=arch,
        recipe=name,
        task=_task(task, arch),
        encoder=EncoderChoice(
            name="minilm" if bert else "paper",
            dropout=0.1,
            attention_dropout=0.1,
            # Hidden states of the paper's transformers are scaled down; BERT's are used as they are.
            output_scaling=1.0 if bert else 0.06,
        ),
        tokenizer=TokenizerChoice()
        if bert
        else TokenizerChoice(kind="sentencepiece", vocab_size=VOCABULARY, model="bpe"),
        text=text,
        head=_head(arch),
        batch=BatchConfig(batch_size=BATCH[arch], candidates=_candidates(task, arch), n_negatives=15),
        optim=OptimConfig(
            optimizer="adamax",
            learning_rate=5e-5,
            weight_decay=0.0,
            clip=0.1,
            warmup_steps=WARMUP[arch],
            decay="plateau",
            plateau_factor=0.4,
            plateau_patience=0,
            head_rate=1.0,
        ),
        train=TrainConfig(
            epochs=EPOCHS[arch],
            validate_every_epochs=0.5,
            validate_examples=VALIDATE_EXAMPLES[arch],
            best_by="recall@1",
            time_limit=200_000.0,
            trainable="all-but-embeddings" if bert else "all",
        ),
    )


def _task(task: PaperTask, arch: Arch) -> TaskConfig:
    if task == "dstc7":
        # The paper trained on the augmented rows; the sampled rows are the same, with candidates.
        return DSTC7Config(training="sampled" if arch == "cross" else "augmented")
    return task_named(task)


def _candidates(task: PaperTask, arch: Arch) -> Literal["batch", "inline", "sampled"]:
    if arch != "cross":
        return "batch"
    return "inline" if task in ("convai2", "dstc7") else "sampled"  # rows of other tasks list no candidates


def _head(arch: Arch) -> HeadConfig:
    match arch:
        case "bi":
            return BiConfig(reduction="mean")
        case "poly":
            return PolyConfig(n_codes=64, reduction="mean", codes_std=1.0)
        case "cross":
            return CrossConfig(reduction="first")
