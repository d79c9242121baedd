"""Convert and talk with a random model of the geometry of ParlAI's published poly-encoders.

    python benchmarks/zoo.py                         # 2,000 candidates
    python benchmarks/zoo.py --candidates 100000 --dtype bfloat16

12 layers, 768 wide, 55,000 words, 64 codes, two encoders, float32: 1 GB. The file is written in torch's zip
format without torch. Prints seconds and peak memory, and writes results/zoo/HOST.json.
"""

import dataclasses
import json
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tyro
from record import RESULTS, Record
from rich.console import Console

from polyjax import Ranker
from polyjax.cli.chat import ChatSession, load_index
from polyjax.evaluation.report import hardware
from polyjax.nn.encoders import Dtype
from polyjax.runtime.compilation import enable_compilation_cache

MEASURES = ("polyjax/interop/parlai", "polyjax/interop/torch_file.py", "polyjax/inference", "polyjax/nn")
DIM, LAYERS, WORDS, CODES, POSITIONS = 768, 12, 55_000, 64, 1024
OPT = {
    "model": "transformer/polyencoder",
    "variant": "xlm",
    "activation": "gelu",
    "reduction_type": "mean",
    "n_segments": 2,
    "embeddings_scale": False,
    "learn_positional_embeddings": True,
    "output_scaling": 0.06,
    "n_layers": LAYERS,
    "n_heads": 12,
    "poly_n_codes": CODES,
    "polyencoder_type": "codes",
    "text_truncate": 360,
    "label_truncate": 72,
    "history_size": 20,
    "dict_lower": True,
    "dict_tokenizer": "bpe",
    "dict_endtoken": "__start__",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is timed.

    Attributes:
        candidates: replies to choose from.
        replies: timed replies.
        dtype: of the arithmetic; ParlAI's scores are float32's.
        out: folder of the results.
    """

    candidates: int = 2000
    replies: int = 20
    dtype: Dtype = "float32"
    out: Path = RESULTS


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the state dict."""
    yield "codes", (CODES, DIM)
    for encoder in ("encoder_ctxt", "encoder_cand"):
        yield f"{encoder}.embeddings.weight", (WORDS, DIM)
        yield f"{encoder}.position_embeddings.weight", (POSITIONS, DIM)
        yield f"{encoder}.segment_embeddings.weight", (2, DIM)
        norms = [f"{encoder}.norm_embeddings"]
        for i in range(LAYERS):
            layer = f"{encoder}.layers.{i}"
            norms += [f"{layer}.norm1", f"{layer}.norm2"]
            linear = {f"attention.{name}_lin": (DIM, DIM) for name in ("q", "k", "v", "out")}
            linear |= {"ffn.lin1": (4 * DIM, DIM), "ffn.lin2": (DIM, 4 * DIM)}
            for name, (n_out, n_in) in linear.items():
                yield f"{layer}.{name}.weight", (n_out, n_in)
                yield f"{layer}.{name}.bias", (n_out,)
        for norm in norms:
            yield f"{norm}.weight", (DIM,)
            yield f"{norm}.bias", (DIM,)


def write_model(folder: Path) -> int:
    """Write model, model.opt, model.dict and model.dict.codecs; the number of parameters."""

    def number(n: int) -> bytes:
        return b"J" + struct.pack("<i", n)

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    draw = np.random.default_rng(0)
    data, total = b"\x80\x02}" + text("model") + b"}", 0
    with zipfile.ZipFile(folder / "model", "w") as archive:
        for i, (name, shape) in enumerate(shapes()):
            array = 0.03 * draw.standard_normal(shape, np.float32) + ("norm" in name and "weight" in name)
            total += array.size
            archive.writestr(f"archive/data/{i}", array.astype("<f4").tobytes())
            stride = tuple(int(np.prod(shape[j + 1 :])) for j in range(len(shape)))
            storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(str(i)) + text("cpu")
            data += (
                text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(array.size) + b"tQ"
            )
            data += number(0) + numbers(shape) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)RtRs"
        archive.writestr("archive/data.pkl", data + b"s.")
    (folder / "model.opt").write_text(json.dumps(OPT))
    words = ["__null__", "__start__", "__unk__", "__newln__", *(f"w{i}" for i in range(WORDS - 4))]
    (folder / "model.dict").write_text("".join(f"{word}\t{WORDS - i}\n" for i, word in enumerate(words)))
    (folder / "model.dict.codecs").write_text("#version: 0.2\n_ _\n")
    return total


def sentences(n: int) -> list[str]:
    """Different sentences of 4 to 24 short words."""
    draw = np.random.default_rng(1)
    return [
        " ".join([f"a{i}", *(f"{w}" for w in draw.integers(0, 10, int(draw.integers(3, 8))))])
        for i in range(n)
    ]


def main(config: BenchmarkConfig) -> None:
    """Make the model, convert it in a process of its own, index, and talk."""
    say, record = Console().print, Record("zoo", measures=MEASURES, settings=config)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        n_parameters = write_model(folder)
        began = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "polyjax.cli.main",
            "convert",
            "parlai",
            f"{folder}/model",
            f"{folder}/run",
        ]
        subprocess.run(command, check=True, capture_output=True)
        convert_s = time.perf_counter() - began
        convert_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        say(f"{n_parameters / 1e6:.0f} M parameters: {convert_s:.1f} s, peak {convert_gib:.1f} GiB")

        enable_compilation_cache()
        (folder / "candidates.txt").write_text("\n".join(sentences(config.candidates)) + "\n")
        ranker = Ranker.load(folder / "run", dtype=config.dtype)
        began = time.perf_counter()
        index = load_index(ranker, folder / "candidates.txt", folder / "index", say)
        index_s = time.perf_counter() - began
        session = ChatSession(index, repeat=True)
        times = []
        for i in range(config.replies + 1):
            times.append(session.reply(f"{i} how are you today? i am well.", top=5).ms)
            session.reset()
        figures = {
            "dtype": config.dtype,
            "parameters": n_parameters,
            "convert_seconds": convert_s,
            "convert_peak_gib": convert_gib,
            "candidates": config.candidates,
            "candidates_per_second": config.candidates / index_s,
            "reply_ms": statistics.median(times[1:]),
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        for name, value in figures.items():
            say(f"{name:>24} {value if isinstance(value, str) else format(value, ',.1f')}")
        case = {"candidates": config.candidates, "dtype": config.dtype}
        record.add(case, "s", {"conversion": [convert_s]})
        record.add(case, "GiB", {"conversion": [convert_gib], "all": [figures["peak_gib"]]})
        record.add(case, "candidates/s", {"encoding": [figures["candidates_per_second"]]})
        record.add(case, "ms", {"reply": times[1:]})
        record.write(config.out, {"hardware": hardware(), **figures})


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
