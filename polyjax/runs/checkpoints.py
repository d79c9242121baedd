"""Run directories: everything that is needed to resume, evaluate or use a model, and nothing outside.

    config.json           settings of the run, as given and resolved
    data.json             which rows each split had
    model.json            shapes of the model and how texts become tokens
    tokenizer/            tokenizer.json or sentencepiece.model
    checkpoints/STEP/     orbax: ``model`` (parameters), ``training`` (the rest of the state), ``progress``
    checksums/STEP.txt    sha256 of its files
    metrics.jsonl         one line a log, validation or test
    report.md, results.json, figures/

Small files are written aside and renamed; orbax does the same with a checkpoint's folder.
"""

import dataclasses
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint.checkpoint_managers import preservation_policy

from polyjax.config import from_json, to_json
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.data.tokenizers import Tokenizer, load_tokenizer
from polyjax.mesh.processes import agreed, is_primary, wait
from polyjax.runtime.files import PARTIAL, write_text
from polyjax.nn.scorers import ModelConfig, Scorer, make_scorer
from polyjax.nn.encoders import Dtype
from polyjax.runtime.progress import console
from polyjax.runs.checksums import Checksums
from polyjax.train.step import TrainState
from polyjax.errors import InputError, first_line

CONFIG, DATA, MODEL, LOCK = "config.json", "data.json", "model.json", ".lock"
FIGURES = Path("metrics", "metrics")
"""Of a step's folder, where orbax keeps what ``best_by`` was."""
ModelT = TypeVar("ModelT", bound=nnx.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What model.json holds: the model's shape and how texts become its tokens."""

    model: ModelConfig
    text: TextConfig


def write_json(path: Path, value: Any) -> None:
    """Write a configuration or plain data as indented JSON, whole or not at all."""
    write_text(path, json.dumps(to_json(value), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Plain data of a JSON file of a run directory.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        folder = path.parent
        what = "is missing" if folder.is_dir() else f"cannot be read: {folder} is no folder"
        raise InputError(
            f"{path} {what}; expected a run directory made by experiments/run.py, whose training has begun"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None


def flat_parameters(state: nnx.State) -> dict[str, Any]:
    """Parameters by dotted path, as they are stored."""
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def fill_parameters(state: nnx.State, values: dict[str, Any]) -> nnx.State:
    """A state of the same paths with other values."""
    flat = nnx.to_flat_state(state)
    return nnx.from_flat_state(
        [(path, leaf.replace(values[".".join(map(str, path))])) for path, leaf in flat]
    )


class Checkpoints:
    """The checkpoints of a run directory: the latest two, to resume, and the best, to use.

    Args:
        run_dir: the run directory.
        read_only: open to restore only; nothing is created or cleaned.
    """

    def __init__(self, run_dir: Path, *, read_only: bool = False):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # a failure is raised, and said by us
        self._folder = (run_dir / "checkpoints").absolute()
        self._checksums = Checksums(run_dir)
        if read_only and not self._folder.is_dir():
            raise InputError(
                f"{run_dir} has no checkpoints; expected a run directory whose training has begun"
            )
        self._check_figures(read_only)
        keep = [
            preservation_policy.LatestN(2),  # should the last one be damaged
            preservation_policy.BestN(
                get_metric_fn=lambda metrics: metrics["best_by"], n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=lambda metrics: metrics["best_by"],
                best_mode="max",
                preservation_policy=preservation_policy.AnyPreservationPolicy(keep),
                read_only=read_only,
                create=not read_only,
                # Donated buffers may be reused while an asynchronous save still reads them.
                enable_async_checkpointing=False,
            ),
            item_names=("model", "training", "progress"),
        )

    def _check_figures(self, read_only: bool) -> None:
        """Put steps aside whose validation figures cannot be read, which orbax does when it is opened.

        Raises:
            InputError: there is one, and nothing is to be changed.
        """
        steps = self._folder.iterdir() if self._folder.is_dir() else ()
        damaged = [step for step in steps if step.name.isdigit() and not _readable(step / FIGURES)]
        if read_only and damaged:
            raise InputError(f"{damaged[0] / FIGURES} is damaged; remove {damaged[0]} to use another step")
        if not read_only and agreed(bool(damaged)):
            for step in damaged if is_primary() else ():
                console.print(f"{step / FIGURES} is damaged; step {step.name} is put aside", style="red")
                self._move_aside(int(step.name))
            wait("damaged figures are put aside")

    @property
    def latest_step(self) -> int | None:
        """The last saved step, or None."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step with the best validation figure; the last one where none was validated."""
        best = self._manager.best_step()
        return self._manager.latest_step() if best is None else best

    def save(self, state: TrainState, progress: dict[str, Any], *, best_by: float | None) -> None:
        """Save the whole state after an update.

        Args:
            state: the training state.
            progress: plain data: the data iterator's state, validations so far.
            best_by: the validation figure, larger is better; None where this step was not validated.

        Raises:
            InputError: it cannot be written; what was saved before is as it was.
        """
        step = int(state.step)
        model = {**flat_parameters(state.trained), **flat_parameters(state.frozen)}
        before = self.latest_step
        hook, sys.unraisablehook = sys.unraisablehook, _hush_closed_loop
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(_one_copy(model)),
                    training=ocp.args.StandardSave(_one_copy(_training_part(state))),
                    progress=ocp.args.JsonSave(progress),
                ),
                metrics=None if best_by is None else {"best_by": float(best_by)},
            )
            if is_primary():
                self._checksums.write(self._folder / str(step), keep=self._manager.all_steps())
            sys.unraisablehook = hook
        except jax.errors.JaxRuntimeError:  # another process is gone
            raise
        except Exception as error:  # orbax and tensorstore raise bare ones
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # for the other writes, which fail too
            kept = "nothing was saved before" if before is None else f"step {before} is kept"
            raise InputError(
                f"step {step} cannot be saved in {self._folder} ({first_line(error)}; {kept}); make room and "
                "give the same command again"
            ) from None

    def save_parameters(self, scorer: Scorer) -> None:
        """Save a model that was not trained here as step 0."""
        model = flat_parameters(nnx.state(scorer))
        self._manager.save(0, args=ocp.args.Composite(model=ocp.args.StandardSave(model)))
        self._manager.wait_until_finished()

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The latest saved state that is whole, and its progress data; damaged ones are named and put aside.

        Args:
            state: a state of the same shapes; its values are dropped, but where they are matters: on however
                many devices it was saved, it is restored onto these.

        Raises:
            InputError: none is whole.
        """
        while True:
            step = self.latest_step
            assert step is not None
            problem = ""
            if is_primary():
                try:
                    several = len(self._manager.all_steps()) > 1
                    self._checksums.check(self._folder / str(step), required=several)
                except InputError as error:
                    problem = str(error)
            if not agreed(bool(problem)):
                return self._restore_state(step, state)
            problem = problem or f"{self._folder / str(step)} is damaged"
            if len(self._manager.all_steps()) == 1:
                raise InputError(f"{problem}; no other step is saved: remove {self._folder} to begin anew")
            console.print(f"{problem}; it is put aside, and the step before is used", style="red")
            self._put_aside(step)

    def _put_aside(self, step: int) -> None:
        if is_primary():
            self._move_aside(step)
        wait(f"step {step} is put aside")
        self._manager.reload()

    def _move_aside(self, step: int) -> None:
        aside = self._folder.with_name("damaged")
        aside.mkdir(exist_ok=True)
        shutil.rmtree(aside / str(step), ignore_errors=True)
        os.replace(self._folder / str(step), aside / str(step))

    def _restore_state(self, step: int, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        model = {**flat_parameters(state.trained), **flat_parameters(state.frozen)}
        part = _training_part(state)
        restored = self._restore(
            step,
            model=ocp.args.StandardRestore(_abstract(model)),
            training=ocp.args.StandardRestore(_abstract(part)),
            progress=ocp.args.JsonRestore(),
        )
        treedef = jax.tree.structure(state.optimizer)
        training = restored["training"]
        loss_scale = state.loss_scale
        if loss_scale is not None:
            loss_scale = loss_scale.replace(**training["loss_scale"])
        return TrainState(
            trained=fill_parameters(state.trained, restored["model"]),
            frozen=fill_parameters(state.frozen, restored["model"]),
            optimizer=treedef.unflatten(training["optimizer"][f"{i:04d}"] for i in range(treedef.num_leaves)),
            plateau=type(state.plateau)(**training["plateau"]),
            step=training["step"],
            key=training["key"],
            loss_scale=loss_scale,
        ), restored["progress"]

    def _restore(self, step: int, **items: ocp.args.CheckpointArgs) -> Any:
        """The items of a saved step.

        Raises:
            InputError: a file of the step is missing or damaged, or holds another model.
        """
        hook, sys.unraisablehook = sys.unraisablehook, _hush_closed_loop
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
            if missing := [name for name in items if restored[name] is None]:
                raise KeyError(missing[0])
            sys.unraisablehook = hook
            return restored
        except Exception as error:  # orbax and tensorstore raise bare ones for damaged files
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # for the other reads, which fail too
            raise InputError(f"{self._folder / str(step)} cannot be restored ({first_line(error)})") from None

    def restore_parameters(self, model: ModelT, step: int | None = None) -> ModelT:
        """A model with the parameters of a saved step; of the best one by default.

        Args:
            model: gives the shapes; it may be abstract (from ``nnx.eval_shape``).
            step: the saved step.

        Raises:
            InputError: nothing was saved, or another step was.
        """
        step = self.best_step if step is None else step
        saved = sorted(self._manager.all_steps())
        if step is None or step not in saved:
            raise InputError(f"{self._folder}: no checkpoint of step {step}; saved are {saved}")
        graph, state = nnx.split(model)
        target = _abstract(flat_parameters(state))
        try:
            self._checksums.check(self._folder / str(step), item="model")
            restored = self._restore(step, model=ocp.args.StandardRestore(target))
        except InputError as error:
            others = [other for other in saved if other != step]
            way_out = f"remove that folder to use step {others[-1]}" if others else "no other step is saved"
            raise InputError(f"{error}; {way_out}") from None
        return nnx.merge(graph, fill_parameters(state, restored["model"]))


def _readable(path: Path) -> bool:
    """Whether a JSON file is not there, as in steps that were not validated, or whole."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _hush_closed_loop(late: Any) -> None:
    """Leave out what the reads and writes of a checkpoint that failed say after its event loop is closed."""
    if "Event loop is closed" not in str(late.exc_value):
        sys.__unraisablehook__(late)


def _training_part(state: TrainState) -> dict[str, Any]:
    """What of the state is not parameters. The optimiser's leaves are numbered: its tree is code's matter."""
    leaves, scale = jax.tree.leaves(state.optimizer), state.loss_scale
    return {
        "optimizer": {f"{i:04d}": leaf for i, leaf in enumerate(leaves)},
        "plateau": state.plateau._asdict(),
        "step": state.step,
        "key": state.key,
        **({} if scale is None else {"loss_scale": {"scale": scale.scale, "fin_steps": scale.fin_steps}}),
    }


def _one_copy(tree: Any) -> Any:
    """What all devices have, of one of them where one process has them all.

    Orbax would cut each such array into a slice for each device, which spares each of several hosts some
    writing, and a single one nothing.
    """
    if jax.process_count() > 1:
        return tree
    return jax.tree.map(
        lambda x: x.addressable_data(0) if getattr(x, "is_fully_replicated", False) else x, tree
    )


def _abstract(tree: Any) -> Any:
    """Shapes, and where the arrays are or belong; on one device of this process where that is open."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or device),
        tree,
    )


def read_card(run_dir: Path) -> ModelCard:
    """The shape and text settings of a run directory's model.

    Raises:
        InputError: model.json is missing or broken.
    """
    return from_json(ModelCard, read_json(run_dir / MODEL), source=str(run_dir / MODEL))


def write_model(run_dir: Path, scorer: Scorer, card: ModelCard, tokenizer: Tokenizer, *, config: Any) -> None:
    """Make a run directory of a model that comes from elsewhere; whole or not at all.

    Args:
        run_dir: must not exist yet.
        scorer: its parameters become step 0.
        card: the model's shape and text settings.
        tokenizer: saved with it.
        config: what config.json says about where the model comes from.

    Raises:
        InputError: the directory exists, or cannot be written.
    """
    if run_dir.exists():
        raise InputError(f"{run_dir} exists already; choose another directory, or remove it")
    aside = run_dir.with_name(run_dir.name + PARTIAL)
    try:
        shutil.rmtree(aside, ignore_errors=True)
        (aside / "tokenizer").mkdir(parents=True)
        write_json(aside / CONFIG, config)
        write_json(aside / MODEL, card)
        tokenizer.save(aside / "tokenizer")
        Checkpoints(aside).save_parameters(scorer)
        os.replace(aside, run_dir)
    except OSError as error:
        raise InputError(f"{run_dir} cannot be written: {error}") from None


def load_scorer(
    run_dir: Path, *, step: int | None = None, dtype: Dtype | None = None
) -> tuple[Scorer, TextEncoder]:
    """The scorer of a run directory with its best (or a given) step's parameters, and its text encoder.

    Args:
        run_dir: the run directory.
        step: a saved step; the best one by default.
        dtype: of the encoders' arithmetic; as the model was made by default.

    Raises:
        InputError: a file of the run directory is missing or broken.
    """
    card = read_card(run_dir)
    tokenizer = load_tokenizer(run_dir / "tokenizer")
    shape = card.model.encoder if dtype is None else dataclasses.replace(card.model.encoder, dtype=dtype)
    abstract = nnx.eval_shape(lambda: make_scorer(shape, card.model.head, rngs=nnx.Rngs(0)))
    scorer = Checkpoints(run_dir, read_only=True).restore_parameters(abstract, step)
    return scorer, TextEncoder(tokenizer, card.text)
