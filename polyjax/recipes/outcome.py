"""After training: the test of model and baselines, the report, and the next command to run."""

import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from polyjax.data.rows import Rows
from polyjax.data.tasks import describe
from polyjax.data.text import TextEncoder
from polyjax.data.tokenizers import Tokenizer
from polyjax.data.truncation import ranked_losses
from polyjax.evaluation.baselines import tfidf_ranking, zero_shot_rankings
from polyjax.evaluation.calibration import fit_score_map
from polyjax.evaluation.candidates import chance, check_candidates, right_places
from polyjax.evaluation.metrics import RankingResult
from polyjax.evaluation.rankings import evaluate, some
from polyjax.evaluation.report import RESULTS, best_of, console_table, verdict, write_report
from polyjax.inference.scorer import TextScorer
from polyjax.interop.cards import load_scorer
from polyjax.interop.pretrained import load_pretrained
from polyjax.mesh.processes import is_primary
from polyjax.nn.encoders import EncoderSettings
from polyjax.recipes.card import model_card
from polyjax.recipes.settings import RunConfig
from polyjax.recipes.splits import Splits
from polyjax.recipes.start import initial_scorer
from polyjax.runs import Checkpoints, MetricsLog, write_json, write_score_map
from polyjax.runtime.progress import console
from polyjax.train.loop import TrainResult
from polyjax.types import Example

BEFORE = "before training"
"""Name in tables of the model given as ``init``."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run whose training has ended.

    Attributes:
        config: settings of the run.
        shape: settings of the encoder.
        source: folder of the initial weights; None for none.
        tokenizer: the tokenizer.
        mesh: devices that share the work.
        outcome: the result of the training loop.
        began: start of the command on the monotonic clock, in seconds.
    """

    config: RunConfig
    shape: EncoderSettings
    source: Path | None
    tokenizer: Tokenizer
    mesh: Mesh
    outcome: TrainResult
    began: float


def report(
    run: Trained, splits: Splits, turns: Callable[[], Iterator[str]], *, show_table: bool = True
) -> None:
    """Evaluate the best checkpoint on the test rows, and write the report.

    Every process must call it, because the model is evaluated on the mesh; one of them writes.

    Args:
        run: the trained run.
        splits: rows of the run.
        turns: returns the texts of the training rows, for TF-IDF.
        show_table: print the table of results.
    """
    config, rows = run.config, splits.test
    test, title = some(rows.examples, config.test_examples), f"{config.dataset.name} test"
    ks = config.dataset.ks
    scorer = TextScorer(*load_scorer(config.folder, **config.own_parts), mesh=run.mesh)
    lost = lost_texts(run, splits, scorer)
    model = evaluate(f"{config.arch}-encoder", scorer, test, shared=rows.shared, title="testing")
    MetricsLog(config.folder, resume_step=run.outcome.steps, write=is_primary()).write(
        run.outcome.steps, "test", {"loss": model.loss, **model.ranking.summary(ks)}
    )
    if is_primary():  # saved even if a baseline fails
        write_json(config.folder / RESULTS, {model.ranking.name: model.ranking.summary(ks)})
    title = f"{title}, {len(test)} rows"
    try:
        calibrate(run, scorer, splits.valid)
        baselines = run_baselines(run, test, list(turns()), rows.shared)
    except BaseException:  # what was computed is shown, whatever becomes of the rest
        console.print(console_table([model.ranking], title, ks=ks))
        raise
    results = [*baselines, model.ranking]
    if show_table:
        console.print(console_table(results, title, ks=ks))
    notes = report_notes(run, splits, scorer, lost, n_tested=len(test))
    if is_primary():
        counts = len(splits.train.examples), len(splits.valid.examples), len(test)
        write_report(
            config.folder,
            results,
            title=f"{config.dataset.name}, {config.arch}-encoder",
            notes=notes,
            card=model_card(config, run.shape, run.source, rows=counts),
            log=MetricsLog.read(config.folder),
            ks=ks,
        )
    # With init, compare with the model before training; otherwise with the best baseline.
    before = [result for result in baselines if result.name == BEFORE]
    if compared := best_of(before or baselines):
        console.print(verdict(model.ranking, compared))
    for note in notes[1:]:
        console.print(note)
    console.print(f"report: {config.folder / 'report.md'}")
    if config.inputs == "dual":
        console.print(f"next: polyjax chat {config.folder} --candidates FILE, one candidate per line")


def lost_texts(run: Trained, splits: Splits, scorer: TextScorer) -> list[str]:
    """What the model does not see of the rows to validate and to test on, one line each."""
    config = run.config
    most = {"validation": config.train.validate_examples, "test": config.test_examples}
    ranked = zip(most, (splits.valid, splits.test), strict=True)
    return [
        note
        for split, rows in ranked
        for note in ranked_losses(
            some(rows.examples, most[split]), scorer.text, split=split, shared=rows.shared
        ).notes()
    ]


def report_notes(
    run: Trained, splits: Splits, scorer: TextScorer, lost: Sequence[str], *, n_tested: int
) -> list[str]:
    """Facts about the run, one per line; the first is about the test rows."""
    config, outcome = run.config, run.outcome
    tested = Checkpoints(config.folder, read_only=True).best_step
    return [
        f"task: {describe(config.dataset, 'test', n_tested)}",
        *splits.notes,
        *lost,
        f"training: {outcome.steps} steps of {config.batch.batch_size} contexts in {outcome.seconds:.0f} s "
        f"(validations included), ended by: {outcome.stopped_by}; seed {config.train.seed}",
        f"tested: the checkpoint of step {tested:,}, the best on the validation rows by "
        f"{config.train.best_by}",
        f"programs compiled: {outcome.compilations} for training and validation, "
        f"{scorer.compilations} for testing; length buckets {config.text.buckets}",
        f"whole command: {time.monotonic() - run.began:.0f} s",
    ]


def calibrate(run: Trained, scorer: TextScorer, valid: Rows) -> None:
    """Fit the map from scores to probabilities on validation rows, and save it in the model card.

    Args:
        run: the trained run.
        scorer: the model at its best checkpoint.
        valid: validation rows. If they share their candidates, each is scored with a few of them.
    """
    examples = some(valid.examples, run.config.train.validate_examples)
    if valid.shared:
        examples = [_with_some(example, valid.shared) for example in examples]
    found = evaluate("valid", scorer, examples, title="calibrating")
    right = np.take_along_axis(right_places(examples), found.best, axis=1)
    score_map = fit_score_map(found.scores, right)
    if is_primary():
        write_score_map(run.config.folder, score_map)


FEW = 31
"""Number of shared candidates, besides its label, with which a row is scored to fit the map."""


def _with_some(example: Example, shared: Sequence[str]) -> Example:
    """The example with its label and a few of the shared candidates, always the same ones."""
    drawn = random.Random(example.id).sample(shared, min(FEW, len(shared)))
    return dataclasses.replace(example, candidates=(example.label_text, *drawn), label=0)


def run_baselines(
    run: Trained, examples: list[Example], fit_on: Sequence[str], shared: Sequence[str]
) -> list[RankingResult]:
    """Chance, TF-IDF and the untrained encoder (or the model of ``init``) on the test rows."""
    config = run.config
    n = check_candidates(examples, shared, source=config.dataset.name)
    results = [
        chance(examples, shared, n_candidates=n),
        tfidf_ranking(examples, fit_on, shared=shared),
    ]
    if config.init is not None:
        scorer = initial_scorer(config, run.shape, None)
        before = TextScorer(scorer, TextEncoder(run.tokenizer, config.text))
        results.append(evaluate(BEFORE, before, examples, shared=shared, title=BEFORE).ranking)
    if run.source is not None:
        encoder = run.shape.build(rngs=nnx.Rngs(0))
        load_pretrained(encoder, run.source)
        results += zero_shot_rankings(
            encoder, run.tokenizer, config.text, examples, shared=shared, title="zero-shot baselines"
        )
    return results
