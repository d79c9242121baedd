"""How jax compiles in tests; and where the examples of docstrings run, which lie beside the code."""

import contextlib
import io
import os
import shutil
import tempfile
from pathlib import Path

# Before jax is imported: small programs compile in less than half the time like this. Eight simulated
# devices are for what is tested on a mesh.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_force_host_platform_device_count=8",
)

# All processes of a session share what they compile: its workers, and the commands that tests start. Set
# JAX_COMPILATION_CACHE_DIR to keep it for the next session, which then takes half as long.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{tempfile.gettempdir()}/polyjax-compiled-{os.getpid()}")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import pytest

ENCODER = Path(__file__).parent / "tests" / "golden" / "encoders" / "st_bert_cls_normalize_classic"


def pytest_unconfigure():
    """The process that chose the folder, by its own number, removes it; the others have it from that one."""
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
    if cache.endswith(f"polyjax-compiled-{os.getpid()}"):
        shutil.rmtree(cache, ignore_errors=True)


@pytest.fixture(scope="session")
def examples_folder(tmp_path_factory) -> Path:
    """Holds my-encoder, a sentence-transformers folder."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "my-encoder").symlink_to(ENCODER)
    return folder


@pytest.fixture(scope="session")
def earlier_run(examples_folder):
    """A finished run in the same folder, runs/earlier."""
    import polyjax

    rows = [{"context": f"question {i}", "label": f"answer {i}"} for i in range(60)]
    settings = {"arch": "bi", "encoder": "tiny", "steps": 2, "batch": {"batch_size": 8}, "quiet": True}
    polyjax.fit(rows, run_dir=examples_folder / "runs" / "earlier", **settings)


@pytest.fixture(autouse=True)
def as_in_the_reference(request, doctest_namespace):
    """An example sees the public names; one that names my-encoder or runs/earlier is where these are."""
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    import polyjax

    doctest_namespace.update({name: getattr(polyjax, name) for name in polyjax.__all__})
    text = request.node.dtest.docstring
    if "runs/earlier" in text:
        request.getfixturevalue("earlier_run")
    elif "my-encoder" not in text:
        yield
        return
    with (
        contextlib.chdir(request.getfixturevalue("examples_folder")),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield
