"""The checkpoints of a run directory: which are kept, which is best, how damaged ones are handled."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from flax import nnx

from polyjax.errors import InputError, first_line
from polyjax.mesh.processes import agreed, is_primary, wait
from polyjax.runs.checksums import Checksums
from polyjax.runs.layout import CHECKPOINTS, DAMAGED, saved_steps
from polyjax.runs.parameters import fill_parameters, flat_parameters
from polyjax.runs.quiet import ArrayError
from polyjax.runtime.progress import console

TREES = ("model", "training")
BEST_BY_FILE = Path("metrics", "metrics")
"""The file of a step's folder in which orbax keeps ``best_by``."""
NO_OTHER = "no other step is saved"
ModelT = TypeVar("ModelT", bound=nnx.Module)


class Saved(NamedTuple):
    """What was saved at a step.

    Attributes:
        trees: of arrays, by name.
        progress: plain data.
    """

    trees: dict[str, Any]
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run directory: the latest two, to resume, and the best, to use.

    A checkpoint is trees of arrays by name, ``model`` (the parameters, by dotted path) and ``training`` (what
    else is needed to resume), and plain data, ``progress``. Orbax reads them without this package.

    Args:
        run_dir: the run directory.
        read_only: open to restore only; nothing is created or cleaned.
        say: called with a message about a damaged checkpoint; printed in red if None.

    Raises:
        InputError: there is no checkpoint to restore, or orbax cannot open a folder of this name.
    """

    def __init__(self, run_dir: Path, *, read_only: bool = False, say: Callable[[str], None] | None = None):
        from polyjax.runs.arrays import ArrayStore  # orbax is imported where checkpoints are opened

        self._run_dir, self._folder = run_dir, (run_dir / CHECKPOINTS).absolute()
        try:
            str(self._folder).encode("utf-8")
        except UnicodeEncodeError:  # before anything is trained, not when it is saved
            raise InputError.in_file(
                run_dir,
                problem="this name is not text in the process's locale, and checkpoints need a name that is",
                fix="set PYTHONUTF8=1, or use another folder",
            ) from None
        self._checksums = Checksums(run_dir)
        self._say = say or _print
        if read_only and not self._folder.is_dir():
            fix = "name the directory of a run that has begun to train"
            raise InputError.in_file(run_dir, problem="has no checkpoints", fix=fix)
        self._check_best_by(read_only)
        self._store = ArrayStore(self._folder, trees=TREES, read_only=read_only)

    def _check_best_by(self, read_only: bool) -> None:
        """Put aside steps whose validation metric cannot be read: orbax reads all of them when it opens.

        Raises:
            InputError: there is one, and the folder is read-only.
        """
        steps = [self._folder / str(step) for step in saved_steps(self._run_dir)]
        damaged = [step for step in steps if not _readable(step / BEST_BY_FILE)]
        if read_only and damaged:
            fix = f"remove {damaged[0]} to use another step"
            raise InputError.in_file(damaged[0] / BEST_BY_FILE, problem="damaged", fix=fix)
        if not read_only and agreed(bool(damaged)):
            for step in damaged if is_primary() else ():
                self._say(f"{step / BEST_BY_FILE}: damaged; step {step.name} is put aside")
                self._move_aside(int(step.name))
            wait("steps with damaged metrics are put aside")

    @property
    def steps(self) -> list[int]:
        """All saved steps, in order."""
        return self._store.steps

    @property
    def latest_step(self) -> int | None:
        """The last saved step, or None."""
        return next(reversed(self.steps), None)

    @property
    def best_step(self) -> int | None:
        """The step with the best validation metric; the last one where none was validated."""
        return self._store.best_step

    def save(
        self, step: int, trees: Mapping[str, Any], progress: dict[str, Any], *, best_by: float | None
    ) -> None:
        """Save a step.

        Args:
            step: its number.
            trees: of arrays, by name: ``model`` and ``training``.
            progress: plain data: validations so far, seconds.
            best_by: the validation metric, larger is better; None where this step was not validated.

        Raises:
            InputError: it cannot be written; earlier checkpoints are unchanged.
        """
        before = self.latest_step
        try:
            self._store.save(step, trees, progress=progress, best_by=best_by)
            if is_primary():
                self._checksums.write(self._folder / str(step), keep=self.steps)
        except (ArrayError, OSError) as error:
            kept = "nothing was saved before" if before is None else f"step {before} is kept"
            problem = f"step {step} cannot be saved ({first_line(error)}; {kept})"
            raise InputError.in_file(self._folder, problem=problem, fix="make room, then resume") from None

    def save_parameters(self, model: nnx.Module) -> None:
        """Save a model that was not trained here as step 0.

        Raises:
            OSError: it cannot be written.
        """
        try:
            self._store.save(0, {"model": flat_parameters(nnx.state(model))})
        except ArrayError as error:
            raise OSError(first_line(error)) from None

    def restore(self, like: Mapping[str, Any]) -> Saved:
        """The latest saved step that is intact; damaged ones are reported and put aside.

        Args:
            like: trees of the same shapes, by name. Their values are ignored, their placement is not: on
                however many devices a tree was saved, it is restored onto theirs.

        Raises:
            InputError: none is intact.
        """
        while True:
            step = self.latest_step
            assert step is not None
            problem: InputError | None = None
            if is_primary():
                try:
                    several = len(self.steps) > 1
                    self._checksums.check(self._folder / str(step), required=several)
                except InputError as error:
                    problem = error
            if not agreed(problem is not None):
                found = self._restore(step, like, progress=True)
                return Saved({name: found[name] for name in like}, found["progress"])
            problem = problem or InputError.in_file(self._folder / str(step), problem="damaged")
            if len(self.steps) == 1:
                raise _fixed(problem, f"{NO_OTHER}: remove {self._folder} to start again") from None
            self._say(f"{problem}; it is put aside, and the step before is used")
            self._put_aside(step)

    def _put_aside(self, step: int) -> None:
        if is_primary():
            self._move_aside(step)
        wait(f"step {step} is put aside")
        self._store.reload()

    def _move_aside(self, step: int) -> None:
        aside = self._folder.with_name(DAMAGED)
        aside.mkdir(exist_ok=True)
        shutil.rmtree(aside / str(step), ignore_errors=True)
        os.replace(self._folder / str(step), aside / str(step))

    def _restore(self, step: int, like: Mapping[str, Any], *, progress: bool = False) -> dict[str, Any]:
        """Trees, and ``progress``, of a saved step.

        Raises:
            InputError: a file of the step is missing or damaged, or holds another model.
        """
        try:
            return self._store.restore(step, like, progress=progress)
        except ArrayError as error:
            problem = f"cannot be restored ({error})"
            raise InputError.in_file(self._folder / str(step), problem=problem) from None

    def restore_parameters(self, model: ModelT, step: int | None = None) -> ModelT:
        """A model with the parameters of a saved step; of the best one by default.

        Args:
            model: gives the shapes; it may be abstract (from ``nnx.eval_shape``).
            step: the saved step.

        Raises:
            InputError: nothing was saved, or not this step.
        """
        step = self.best_step if step is None else step
        saved = self.steps
        if step is None:
            raise InputError.in_file(self._folder, problem="nothing was saved yet", fix="train the run first")
        if step not in saved:
            raise InputError("step", expected=f"one of the saved steps {saved}", got=step)
        graph, state = nnx.split(model)
        try:
            self._checksums.check(self._folder / str(step), item="model")
            restored = self._restore(step, {"model": flat_parameters(state)})
        except InputError as error:
            others = [other for other in saved if other != step]
            use = f"remove {self._folder / str(step)} to use step {others[-1]}" if others else NO_OTHER
            raise _fixed(error, use) from None
        return nnx.merge(graph, fill_parameters(state, restored["model"]))


def _print(text: str) -> None:
    console.print(text, style="red")


def _fixed(error: InputError, fix: str) -> InputError:
    """An error in a file, with another fix."""
    return InputError.in_file(error.argument, problem=error.problem, fix=fix)


def _readable(path: Path) -> bool:
    """Whether a JSON file is intact, or absent, as in steps that were not validated."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return True
