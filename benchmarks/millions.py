"""Search from a thousand to a million candidates: time and memory, each in a process of its own.

    python benchmarks/millions.py      # 768 wide, bfloat16, 64 codes; 1.6 GB of disk for a while

Synthetic unit vectors in clusters, written as an index; context vectors near one of them that differ little,
as a trained model's do. A process opens the index, memory-mapped, and searches it by the scan and by
certified search. Prints a table, writes results/millions/HOST.json.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tyro
from common import print_table
from record import RESULTS, Record

from polyjax.evaluation.report import hardware
from polyjax.retrieval.index.change import commit, finish_segment, new_vectors, writing
from polyjax.retrieval.index.fingerprint import Fingerprint
from polyjax.retrieval.index.manifest import Manifest, SegmentInfo
from polyjax.retrieval.index.rows import IndexDtype, quantise
from polyjax.runtime.progress import meter

MEASURES = ("polyjax/retrieval", "polyjax/nn/heads")
CLUSTERS, AT_ONCE = 1000, 8192

PROGRAM = """
import json, sys, statistics, time
from pathlib import Path
import jax.numpy as jnp
import numpy as np
from flax import nnx
from polyjax.nn.heads import PolyConfig, PolyHead
from polyjax.retrieval.search.certified import CertifiedSearch
from polyjax.retrieval.search.scan import Scan
from polyjax.retrieval.index.store import open_index
folder, codes, repeats = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
began = time.perf_counter()
index = open_index(folder)
opened = time.perf_counter() - began
dim = index.manifest.dim
head = PolyHead(PolyConfig(n_codes=codes, candidate_sharpness=10.0), dim, rngs=nnx.Rngs(0))
draw = np.random.default_rng(1)
centre = index.stored(np.array([len(index) // 2]))[0].astype(np.float32)
steps = draw.standard_normal((codes, 12)) @ draw.standard_normal((12, dim))
vectors = centre + 0.15 * steps / np.linalg.norm(steps, axis=1, keepdims=True)
given = jnp.asarray(vectors, jnp.float32)[None], jnp.ones((1, codes), bool)
scan = Scan(head, index)
search = CertifiedSearch(scan, head)
times = {"scan": [], "certified": []}
for _ in range(repeats + 1):
    for name, run in (("scan", scan), ("certified", search)):
        began = time.perf_counter()
        found = run(*given, 16)
        times[name].append(1e3 * (time.perf_counter() - began))
        rows = found[0].rows if name == "certified" else found[1][0]
        expected = rows if name == "scan" else expected
        assert (rows == expected).all()
# Not getrusage, whose peak is that of the process that started this one where that was larger.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(json.dumps({"times": {name: values[1:] for name, values in times.items()}, "open_ms": 1e3 * opened,
    "rank": found[0].rank, "rescored": found[0].rescored,
    **{f"{name}_ms": statistics.median(values[1:]) for name, values in times.items()},
    "peak_mb": int(peak) * 1024 / 1e6}))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
        candidates: how many, one row of the table each.
        codes: context vectors.
        dim: width.
        dtype: of the stored vectors.
        repeats: searches of each kind, after one that compiles.
        out: folder of the results.
    """

    candidates: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    codes: int = 64
    dim: int = 768
    dtype: IndexDtype = "bfloat16"
    repeats: int = 7
    out: Path = RESULTS


NOBODY = Fingerprint(weights="", architecture="", tokenizer="", lengths="", arithmetic="float32")


def write_index(folder: Path, n: int, config: BenchmarkConfig) -> None:
    """An index of synthetic vectors."""
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((CLUSTERS, config.dim), np.float32)
    with writing(folder, new=True), meter("writing", n, unit="candidates") as shown:
        part = folder / "000000"
        part.mkdir()
        vectors = new_vectors(part, n, config.dim, config.dtype)
        for first in range(0, n, AT_ONCE):
            rows = min(AT_ONCE, n - first)
            some = centres[draw.integers(0, CLUSTERS, rows)] + draw.standard_normal(
                (rows, config.dim), np.float32
            )
            some /= np.linalg.norm(some, axis=1, keepdims=True)
            vectors[first : first + rows] = quantise(some, config.dtype)[0]
            shown.add(rows)
        vectors.flush()
        finish_segment(part, [str(i) for i in range(n)], np.arange(n), config.dtype)
        info = SegmentInfo(name="000000", count=n)
        manifest = Manifest(
            model=NOBODY, source="", dtype=config.dtype, dim=config.dim, next_id=n, segments=(info,)
        )
        commit(folder, manifest)


def main(config: BenchmarkConfig) -> None:
    """Measure, print, write."""
    record, rows = Record("millions", measures=MEASURES, settings=config), []
    for n in config.candidates:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "index"
            write_index(folder, n, config)
            command = [sys.executable, "-c", PROGRAM, str(folder), str(config.codes), str(config.repeats)]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            size = (folder / "000000" / "vectors.npy").stat().st_size / 1e6
            found = json.loads(run.stdout)
            case = {"codes": config.codes, "candidates": n}
            record.add(case, "ms", found.pop("times"), to="scan")
            record.add(case, "MB", {"on disk": [size], "peak memory": [found["peak_mb"]]})
            rows.append({"candidates": n, "file_mb": size, **found})
    columns = {
        "candidates": "{candidates:,}",
        "open ms": "{open_ms:.1f}",
        "scan ms": "{scan_ms:.1f}",
        "certified ms": "{certified_ms:.1f}",
        "rank": "{rank}",
        "rescored": "{rescored:,}",
        "disk MB": "{file_mb:.0f}",
        "peak MB": "{peak_mb:.0f}",
    }
    print_table(f"{config.codes} codes, {config.dim} wide, {config.dtype}", columns, rows)
    record.write(config.out, {"hardware": hardware(), "codes": config.codes, "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
