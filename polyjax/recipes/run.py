"""A finished run as a Python object: its folder, metrics and model."""

import os
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from polyjax.errors import InputError
from polyjax.evaluation.report import REPORT, RESULTS
from polyjax.inference.arguments import check_folder
from polyjax.nn.encoders import Dtype
from polyjax.ranker import Ranker
from polyjax.recipes.results import Results
from polyjax.runs import CONFIG, MetricsLog, read_json


class Run:
    """A finished run. ``polyjax.fit`` returns one; ``Run.load(folder)`` opens an earlier one.

    >>> run = Run.load("runs/earlier")
    >>> list(run.test)  # baselines, and the model
    ['chance', 'TF-IDF (below chance)', 'bi-encoder']
    >>> ranker = run.ranker()

    Attributes:
        folder: the run directory, which holds all files of the run.
    """

    def __init__(self, folder: str | os.PathLike[str], *, head: Any = None, encoder: Any = None):
        check_folder(folder)
        self.folder = Path(folder)
        self._head, self._encoder = head, encoder

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, head: Any = None, encoder: Any = None) -> "Run":
        """Open a run of ``polyjax.fit`` or ``polyjax train``.

        Args:
            folder: the run directory.
            head: your own head that the run was made with: its class or its settings.
            encoder: your own encoder family, likewise.

        Raises:
            InputError: the folder is not a run directory, or the run has not finished.
        """
        check_folder(folder)
        path = Path(folder)
        read_json(path / CONFIG)  # raises with what is missing
        if not (path / RESULTS).is_file():
            raise InputError(
                str(path),
                problem="this run has not finished",
                fix="call `fit` again with the same arguments to resume it",
                is_argument=False,
            )
        return cls(path, head=head, encoder=encoder)

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the run, the content of config.json."""
        return read_json(self.folder / CONFIG)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl as dicts: ``step``, ``kind`` (train, valid or test) and metrics."""
        return MetricsLog.read(self.folder)

    @property
    def test(self) -> Results:
        """Metrics on the test rows: chance, TF-IDF and the untrained encoder first, the model last."""
        rows = read_json(self.folder / RESULTS)
        return Results(rows, title=f"{self.folder.name}, test")

    @property
    def valid(self) -> Results:
        """Metrics of the chosen checkpoint on the validation rows."""
        lines = [line for line in self.history if line["kind"] == "valid"]
        best_by = self.config.get("train", {}).get("best_by", "loss")

        def goodness(line: dict[str, Any]) -> float:
            if best_by == "loss":
                return -line["loss"]
            return next(value for name, value in line.items() if name.split("/")[0] == best_by)

        chosen = max(lines, key=goodness)
        metrics = {name: value for name, value in chosen.items() if name not in ("kind", "seconds")}
        return Results({f"step {chosen['step']}": metrics}, title=f"{self.folder.name}, validation")

    def ranker(
        self, *, step: int | None = None, dtype: Dtype | None = None, mesh: Mesh | None = None
    ) -> Ranker:
        """The trained model: ``Ranker.load(run.folder)`` with the run's own parts.

        Args:
            step: a saved step; by default the one with the best validation metric.
            dtype: of the encoders' arithmetic, such as ``bfloat16``; by default the model's own.
            mesh: devices that share each batch of texts, from ``make_mesh``; one device if None.

        Raises:
            InputError: as ``Ranker.load``.
        """
        parts = {"head": self._head, "encoder": self._encoder}
        return Ranker.load(self.folder, step=step, dtype=dtype, mesh=mesh, **parts)

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, step: int | None = None, name: str | None = None
    ) -> None:
        """Save the model as a folder that sentence-transformers loads; see ``Ranker.save_pretrained``.

        Args:
            folder: must not exist yet.
            step: a saved step; by default the one with the best validation metric.
            name: the model's name in README.md; the folder's name by default.

        Raises:
            InputError: sentence-transformers has no equivalent of the model, or the folder exists or cannot
                be written.
        """
        self.ranker(step=step, dtype="float32").save_pretrained(folder, name=name)

    def push_to_hub(self, model: str, *, step: int | None = None) -> None:
        """Upload the model to the Hugging Face hub; see ``Ranker.push_to_hub``.

        Args:
            model: ``organisation/model``.
            step: a saved step; by default the one with the best validation metric.

        Raises:
            InputError: as ``save_pretrained``, or the hub refuses the upload.
        """
        self.ranker(step=step, dtype="float32").push_to_hub(model)

    def report(self) -> "Report":
        """The report: results, verdict, learning curve, data, recipe and limits, as Markdown."""
        path = self.folder / REPORT
        if not path.is_file():
            raise InputError.missing_file(path, "the report of a finished run")
        return Report(path.read_text(encoding="utf-8"))

    def __repr__(self) -> str:
        """The metrics on the test rows; of a run that has none yet, its folder."""
        if not (self.folder / RESULTS).is_file():
            return f"<Run: {self.folder}, not tested yet>"
        return f"{self.test}\n\nrun directory: {self.folder}"

    def _repr_html_(self) -> str | None:
        if not (self.folder / RESULTS).is_file():
            return None
        return f"{self.test._repr_html_()}<p>run directory: <code>{self.folder}</code></p>"


class Report(str):
    """Markdown that notebooks show formatted; ``print`` shows its text."""

    __slots__ = ()

    def _repr_markdown_(self) -> str:
        # Links to plots are relative to the run directory, so they would be broken in a notebook.
        return "\n".join(line for line in self.splitlines() if not line.startswith("!["))
