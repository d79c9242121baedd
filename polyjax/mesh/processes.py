"""Several processes as one run: joining, the one that writes, waiting for each other, losing one.

Every process runs the same command. ``connect`` joins them where environment variables name them: SLURM's, or
plain ones (docs/distributed.md has an example of each, and of Kubernetes).
"""

import contextlib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # its key-value store and its handling of SIGTERM are not public
from jax.experimental import multihost_utils

from polyjax.errors import OUT_OF_MEMORY, InputError, Preempted, first_line
from polyjax.runtime.progress import console

ADDRESS, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
KUBERNETES_INDEX = "JOB_COMPLETION_INDEX"
"""Set by Kubernetes in the pods of an indexed job."""
FAILED, LEAVING = "polyjax/failed", "polyjax/leaving"
"""Keys of the reason why a process failed, for the others, and of the processes that have read it."""
GRACE_S = 5.0
"""Seconds for the others to read it, since they cannot after the first process has ended."""
HEARTBEAT_S = 60
"""Seconds without a heartbeat after which a process counts as lost, and the run with it."""
T = TypeVar("T", bool, int, float)


def connect() -> None:
    """Join the other processes of the run, if there are any; must be called before devices are used.

    For commands only: it changes jax's settings, and silences all processes but one.

    Raises:
        InputError: the variables are incomplete, or the others cannot be reached.
    """
    names = {ADDRESS: os.environ.get(ADDRESS), PROCESSES: os.environ.get(PROCESSES)}
    names[PROCESS] = os.environ.get(PROCESS, os.environ.get(KUBERNETES_INDEX) if names[ADDRESS] else None)
    given = [name for name, value in names.items() if value]
    settings: dict = {"heartbeat_timeout_seconds": HEARTBEAT_S}
    if given:
        missing = [name for name in names if name not in given]
        if missing:
            problem = f"set without {' and '.join(missing)}"
            raise _not_an_argument(" and ".join(given), problem=problem, fix="set all three or none")
        count, index = (_number(name, names[name]) for name in (PROCESSES, PROCESS))
        if not 0 <= index < count:
            raise _not_an_argument(PROCESS, expected=f"0 or more, below {PROCESSES}={count}", got=index)
        settings |= {"coordinator_address": names[ADDRESS], "num_processes": count, "process_id": index}
        settings["cluster_detection_method"] = "deactivate"
    elif int(os.environ.get("SLURM_NTASKS", "1")) < 2 or "SLURM_STEP_NODELIST" not in os.environ:
        return  # not in srun, or alone
    else:
        settings |= _slurm(os.environ)
    # SIGTERM ends the process as usual, except while ``Notice`` listens for it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**settings)
    except Exception as error:  # jax raises any error of its transport
        problem = f"cannot be reached: {first_line(error)}"
        raise _not_an_argument("the run's other processes", problem=problem) from None
    if not is_primary():
        console.quiet = True


def is_primary() -> bool:
    """Whether this is the process that writes shared files."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Wait until all processes are here, however long that takes; once for each name.

    Raises:
        InputError: another process has stopped; the message says why, if known.
    """
    if jax.process_count() == 1:
        return
    client = distributed.global_state.client
    assert client is not None
    key, pause = f"polyjax/waiting/{name}", 0.01
    # jax's public barrier is a computation of all devices, and gives up after half a minute.
    with losses_named():
        client.key_value_set(f"{key}/{jax.process_index()}", "here")
        while len(client.key_value_dir_get(key)) < jax.process_count():
            for _, reason in client.key_value_dir_get(FAILED):
                raise _not_an_argument("the run", problem=reason)
            time.sleep(pause)
            pause = min(2 * pause, 1.0)


@contextlib.contextmanager
def sigterm_is_a_notice() -> Iterator[None]:
    """Inside, jax's service turns SIGTERM of any process into a notice to all; then it is as before."""
    name = "jax_enable_preemption_service"
    handler, setting = signal.getsignal(signal.SIGTERM), jax.config.values[name]
    jax.config.update(name, True)
    distributed.global_state.initialize_preemption_sync_manager()
    try:
        yield
    finally:
        manager = distributed.global_state.preemption_sync_manager
        assert manager is not None
        manager.shutdown()
        distributed.global_state.preemption_sync_manager = None
        # The service's own handler is not Python's, and stays until another is set.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)
        jax.config.update(name, setting)


def agreed(answer: T) -> T:
    """The primary process's answer, in all processes; each of them must call this.

    Args:
        answer: this process's, a bool, int or float (of which float32 is kept).
    """
    if jax.process_count() == 1:
        return answer
    return type(answer)(multihost_utils.broadcast_one_to_all(np.array(answer)))


@contextlib.contextmanager
def primary_first(name: str) -> Iterator[None]:
    """Let the primary process do a piece of work, files included, before the others do it."""
    if not is_primary():
        wait(name)
    yield
    if is_primary():
        wait(name)


@contextlib.contextmanager
def losses_named(fix: str = "start all processes again with the same command") -> Iterator[None]:
    """With several processes: turn jax's error about a lost process into an InputError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or OUT_OF_MEMORY in str(error):
            raise
        me = f"process {jax.process_index()} of {jax.process_count()}"
        raise _not_an_argument(me, problem=f"lost the others ({first_line(error)})", fix=fix) from None


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """End a failed process without waiting for the others, which may be gone."""
    try:
        yield
    except BaseException as stop:
        if not jax.distributed.is_initialized() or (isinstance(stop, SystemExit) and not stop.code):
            raise
        if not isinstance(stop, SystemExit):
            traceback.print_exc()
        _tell_the_others(stop)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 1)


def _tell_the_others(stop: BaseException) -> None:
    """Report to those that ``wait`` why this process ends, and give them time to read it."""
    reason = stop.__context__ if isinstance(stop, SystemExit) else stop
    if isinstance(reason, Preempted):  # as all of them
        return
    me, n, client = jax.process_index(), jax.process_count(), distributed.global_state.client
    assert client is not None
    with contextlib.suppress(Exception):  # the others may be gone
        if not client.key_value_dir_get(FAILED):
            why = first_line(reason) if isinstance(reason, Exception) else "it was interrupted"
            client.key_value_set(f"{FAILED}/{me}", f"process {me} of {n} stopped: {why}")
        client.key_value_set(f"{LEAVING}/{me}", "")
        until = time.monotonic() + GRACE_S
        while is_primary() and len(client.key_value_dir_get(LEAVING)) < n and time.monotonic() < until:
            time.sleep(0.05)


def _slurm(variables: Mapping[str, str]) -> dict:
    """The arguments of ``jax.distributed.initialize`` for a task of srun.

    jax's own detection gives a task one device; here a task that is alone on its node gets all of them.
    """
    # The first node of node[001-002,7],other: the first number of each bracket.
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", variables["SLURM_STEP_NODELIST"])
    assert first is not None
    host = re.sub(r"\[([^,\-\]]+)[^\]]*\]", r"\1", first[0])
    port = 61440 + int(variables["SLURM_JOB_ID"]) % 4096  # a high port, different for each job
    on_node = re.match(r"\d+", variables.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    shared = on_node is not None and int(on_node[0]) > 1
    # With --gpus-per-task=1 srun shows each task its own.
    shown = variables.get("CUDA_VISIBLE_DEVICES", "")
    shared = shared and len(shown.split(",")) > 1 if shown else shared
    return {
        "coordinator_address": f"{host}:{port}",
        "num_processes": int(variables["SLURM_NTASKS"]),
        "process_id": int(variables["SLURM_PROCID"]),
        "local_device_ids": [int(variables["SLURM_LOCALID"])] if shared else None,
        "cluster_detection_method": "deactivate",
    }


def _number(name: str, value: str | None) -> int:
    try:
        return int(value or "")
    except ValueError:
        raise _not_an_argument(name, expected="a whole number", got=value) from None


def _not_an_argument(name: str, **fields: Any) -> InputError:
    """An error about something that is no argument: an environment variable, another process."""
    return InputError(name, is_argument=False, **fields)
