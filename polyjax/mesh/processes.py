"""Several processes as one run: joining them, who writes, waiting for each other, losing one.

Every process runs the same command. ``connect`` joins them where the environment tells of any: SLURM's, or
plain variables (docs/distributed.md has an example of each, and of Kubernetes).
"""

import contextlib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax._src import distributed  # its key-value store, and when it listens for SIGTERM, are not public
from jax.experimental import multihost_utils

from polyjax.errors import OUT_OF_MEMORY, InputError, Preempted, first_line
from polyjax.runtime.progress import console

ADDRESS, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
KUBERNETES_INDEX = "JOB_COMPLETION_INDEX"
"""Set by Kubernetes in the pods of an indexed job."""
FAILED, LEAVING = "polyjax/failed", "polyjax/leaving"
"""Keys of what a process that fails tells the others, and of those that have read it."""
GRACE_S = 5.0
"""For the others to read it: without the first process there is nothing to read from."""
HEARTBEAT_S = 60
"""Without a sign of life for so long, a process is given up, and the run with it."""


def connect() -> None:
    """Join the other processes of the run, if there are any; before anything asks for devices.

    Raises:
        InputError: the variables are incomplete, or the others are not there.
    """
    names = {ADDRESS: os.environ.get(ADDRESS), PROCESSES: os.environ.get(PROCESSES)}
    names[PROCESS] = os.environ.get(PROCESS, os.environ.get(KUBERNETES_INDEX) if names[ADDRESS] else None)
    given = [name for name, value in names.items() if value]
    settings: dict = {"heartbeat_timeout_seconds": HEARTBEAT_S}
    if given:
        missing = [name for name in names if name not in given]
        if missing:
            raise InputError(
                f"{' and '.join(given)} set without {' and '.join(missing)}; set all three or none"
            )
        count, index = (_number(name, names[name]) for name in (PROCESSES, PROCESS))
        if not 0 <= index < count:
            raise InputError(f"{PROCESS}={index} must be below {PROCESSES}={count}")
        settings |= {"coordinator_address": names[ADDRESS], "num_processes": count, "process_id": index}
        settings["cluster_detection_method"] = "deactivate"
    elif int(os.environ.get("SLURM_NTASKS", "1")) < 2 or "SLURM_STEP_NODELIST" not in os.environ:
        return  # not in srun, or alone
    else:
        settings |= _slurm(os.environ)
    # SIGTERM ends a process as anywhere, except while ``Notice`` listens for it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**settings)
    except Exception as error:  # jax raises whatever its transport does
        raise InputError(f"the run's other processes cannot be reached: {first_line(error)}") from None
    if not is_primary():
        console.quiet = True


def is_primary() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Until all processes are here, however long that takes, once for each name.

    Raises:
        InputError: another process has stopped; the message says why, if it could tell.
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
                raise InputError(reason)
            time.sleep(pause)
            pause = min(2 * pause, 1.0)


def listen_for_sigterm() -> None:
    """Let jax's service take SIGTERM, of whichever process, as a notice to all of them."""
    jax.config.update("jax_enable_preemption_service", True)
    distributed.global_state.initialize_preemption_sync_manager()


def stop_listening_for_sigterm() -> None:
    """Let SIGTERM end this process again."""
    manager = distributed.global_state.preemption_sync_manager
    assert manager is not None
    manager.shutdown()
    distributed.global_state.preemption_sync_manager = None
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def agreed(flag: bool) -> bool:
    """The primary process's answer to a question, in all processes; all of them must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


@contextlib.contextmanager
def primary_first(name: str) -> Iterator[None]:
    """A piece of work that the others find done by the primary process, files included."""
    if not is_primary():
        wait(name)
    yield
    if is_primary():
        wait(name)


@contextlib.contextmanager
def losses_named(way_out: str = "start all processes again with the same command") -> Iterator[None]:
    """In several processes: make jax's error that another one is gone one of one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or OUT_OF_MEMORY in str(error):
            raise
        raise InputError(
            f"process {jax.process_index()} of {jax.process_count()} lost the others ({first_line(error)}); "
            f"{way_out}"
        ) from None


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """End a failed process of several without waiting for the others, which may be gone."""
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
    """Leave word of why this process ends for those that ``wait``, and time to read it."""
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
    """What a task of srun's knows of the others.

    jax's own reading gives a task one device; here a task that is alone on its node has all of them.
    """
    # The first of node[001-002,7],other: of each bracket its first number.
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", variables["SLURM_STEP_NODELIST"])
    assert first is not None
    host = re.sub(r"\[([^,\-\]]+)[^\]]*\]", r"\1", first[0])
    port = 61440 + int(variables["SLURM_JOB_ID"]) % 4096  # of the upper ones, another for each job
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
        raise InputError(f"{name}={value!r} is not a whole number") from None
