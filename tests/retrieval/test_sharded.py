"""A search over many devices and processes finds what one device finds."""

import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from conftest import DUAL_HEADS
from polyjax.nn.heads import BiConfig, BiHead, PolyHead
from polyjax.retrieval.index.store import CandidateIndex, in_memory
from polyjax.retrieval.search.scan import Scan
from polyjax.retrieval.search.sharded import ShardedScan

DIM, K = 16, 12


def problem(name: str, n: int, dtype="float32"):
    rng = np.random.default_rng(0)
    config = DUAL_HEADS[name]
    head = (BiHead if isinstance(config, BiConfig) else PolyHead)(config, DIM, rngs=nnx.Rngs(0))
    m = 1 if isinstance(head, BiHead) else head.config.n_codes
    vectors = jnp.asarray(rng.standard_normal((3, m, DIM)), jnp.float32)
    candidates = rng.standard_normal((n, DIM)).astype(np.float32)
    candidates[n // 2 :: 3] = candidates[0]  # ties, across devices
    index = in_memory([str(i) for i in range(n)], candidates, dtype)
    index = CandidateIndex(index.segments, dtype, removed=np.arange(1, n, 5))
    return head, vectors, jnp.ones(vectors.shape[:2], bool), index


def check(one, other):
    np.testing.assert_array_equal(one[1], other[1])
    there = one[1] >= 0
    np.testing.assert_allclose(one[0][there], other[0][there], rtol=1e-5)
    assert np.isneginf(other[0][~there]).all()


@pytest.mark.parametrize("shape", [(8,), (2, 4), (1,)])
@pytest.mark.parametrize("name", ["bi-mean", "poly-basic", "poly-multihead"])
def test_eight_devices_find_what_one_finds(name, shape):
    mesh = Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), ("data", "model")[: len(shape)])
    for n in (5, 64, 333):
        head, vectors, mask, index = problem(name, n)
        sharded = ShardedScan(head, index, mesh, rows=16)
        check(Scan(head, index, rows=16)(vectors, mask, K), sharded(vectors, mask, K))
        assert sharded.compilations == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_stored_forms(dtype):
    head, vectors, mask, index = problem("poly-basic", 200, dtype)
    sharded = ShardedScan(head, index, jax.make_mesh((8,), ("data",)), rows=16)
    check(Scan(head, index, rows=16)(vectors, mask, K), sharded(vectors, mask, K))


PROCESS = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
sys.path.insert(0, sys.argv[3])
import numpy as np
from polyjax.retrieval.search.sharded import ShardedScan
from test_sharded import K, problem
head, vectors, mask, index = problem("poly-basic", 333)
reads = []
stored = index.stored
index.stored = lambda rows: reads.append(rows) or stored(rows)
assert jax.device_count() == 8 and jax.local_device_count() == 4
scores, rows = ShardedScan(head, index, jax.make_mesh((8,), ("data",)), rows=16)(vectors, mask, K)
read = np.concatenate(reads)
np.savez(sys.argv[4], scores=scores, rows=rows, low=read.min(), high=read.max())
"""


def test_two_processes_find_what_one_finds(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    here = os.path.dirname(__file__)
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": os.pathsep.join([os.path.dirname(here), here, *sys.path]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), address, str(i), here, str(tmp_path / f"{i}.npz")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    head, vectors, mask, index = problem("poly-basic", 333)
    expected = Scan(head, index, rows=16)(vectors, mask, K)
    found = [np.load(tmp_path / f"{i}.npz") for i in range(2)]
    for one in found:
        check(expected, (one["scores"], one["rows"]))
    assert found[0]["high"] < found[1]["low"], "each read its own rows only"
