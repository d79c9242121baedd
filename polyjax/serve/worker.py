"""The threads of the queue: one computes, others tokenise. It admits requests and waits for their results."""

import asyncio
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from polyjax.serve.problems import Problem, failed, overloaded, unavailable
from polyjax.serve.settings import ServeConfig
from polyjax.serve.waiting import Waiting, jobs_of
from polyjax.serve.work import Job, Unit, compute

TOKENISERS = 2
LONG = 100_000
"""Characters of a request that is tokenised in a thread of its own, so that others do not wait for it."""
SMOOTHING = 0.05
"""Weight of the latest batch in the exponential average of the measured speed."""
FEW_BATCHES = 20
"""Number of batches after which the measured speed is used."""
IN_TIME = 0.9
"""The share of the timeout that admission plans with; its estimates of the wait err by several percent."""
log = logging.getLogger("polyjax.serve")
T = TypeVar("T")


@dataclasses.dataclass
class Observed:
    """Callbacks of the worker, called in the model's thread.

    Attributes:
        batch: called for each batch with the numbers of sequences, padded tokens and requests.
    """

    batch: Callable[[int, int, int], None] = lambda sequences, tokens, requests: None


@dataclasses.dataclass(frozen=True, eq=False)  # two requests alike have a place each
class Ticket:
    """The place of a request in the queue, until ``Worker.leave``.

    Attributes:
        texts: number of its texts, its weight.
        arrived: arrival in seconds on the monotonic clock.
        deadline: time on the monotonic clock at which the request gives up.
    """

    texts: int
    arrived: float
    deadline: float


class Worker:
    """Admits requests, tokenises their texts, and computes them in batches that requests share.

    Args:
        config: limits.
        observed: called for each batch.

    Attributes:
        failure: why the model's thread ended; None if it did not fail.
    """

    def __init__(self, config: ServeConfig, observed: Observed | None = None):
        self._config, self._observed = config, observed or Observed()
        self._waiting = Waiting()
        self._changed = threading.Condition()
        self._stopped = False
        self.failure: str | None = None
        self._tickets: set[Ticket] = set()
        self._texts = 0
        self._batches = 0
        self._recent_sequences = self._recent_seconds = self._recent_tokens = 0.0
        self._tokenisers = ThreadPoolExecutor(TOKENISERS, "tokenise")
        self._long_tokeniser = ThreadPoolExecutor(1, "tokenise-long")
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Start the model's thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the threads; waiting requests get 503."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for pool in (self._tokenisers, self._long_tokeniser):
            pool.shutdown(wait=False, cancel_futures=True)
        if self._thread.is_alive():
            self._thread.join()

    @property
    def requests(self) -> int:
        """Number of admitted requests without a reply."""
        return len(self._tickets)

    @property
    def texts(self) -> int:
        """Number of texts in these requests."""
        return self._texts

    def admit(self, texts: int, *, arrived: float) -> Ticket:
        """Admit a request with a number of texts; its place must be returned with ``leave``.

        Args:
            texts: number of texts in the request.
            arrived: arrival of its head, in seconds on the monotonic clock.

        Raises:
            Problem: 429; the queue is full, or the request could not be answered within the timeout. A
                request that nothing precedes is always admitted.
        """
        config = self._config
        wait = self._wait_of_a_newcomer
        busy = len(self._tickets) >= config.max_concurrent_requests
        if busy or (self._texts and self._texts + texts > config.max_waiting_texts):
            raise overloaded(wait, "the server is overloaded; try again later")
        spent = time.monotonic() - arrived  # receiving the body, most of it
        late = spent + wait + texts * self._seconds_per_text - IN_TIME * config.timeout
        if self._tickets and late > 0:
            raise overloaded(late, "the server is overloaded: the wait is longer than the timeout")
        ticket = Ticket(texts, arrived, arrived + config.timeout)
        self._tickets.add(ticket)
        self._texts += texts
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Return the place of a request."""
        self._tickets.discard(ticket)
        self._texts -= ticket.texts

    async def tokenise(
        self, function: Callable[[], T], characters: int, gone: "asyncio.Future[None]", deadline: float
    ) -> T:
        """Call a function in a thread for tokenising, and return its result.

        Args:
            function: a call that has started by the deadline runs to its end, and its result is dropped.
            characters: number of characters that it tokenises.
            gone: a future that is done when the client disconnects.
            deadline: on the monotonic clock, in seconds.

        Raises:
            Problem: the deadline has passed (504).
            ConnectionError: the client disconnected.
        """
        pool = self._tokenisers if characters < LONG else self._long_tokeniser
        made = asyncio.get_running_loop().run_in_executor(pool, function)
        try:
            await self._wait(made, gone, deadline)
            return made.result()
        finally:
            made.cancel()

    async def _wait(self, made: "asyncio.Future[Any]", gone: "asyncio.Future[None]", deadline: float) -> None:
        """Wait until a future is done; raise as ``tokenise`` does if it is not done in time."""
        left = max(deadline - time.monotonic(), 0.0)
        await asyncio.wait({gone, made}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if made.done():
            return
        if gone.done():
            raise ConnectionError("the client went away")
        raise Problem(504, f"no answer within {self._config.timeout:g} s", "Overloaded")

    async def result(self, job: Job, gone: "asyncio.Future[None]") -> Any:
        """Compute a job, in batches shared with other jobs, and return its result.

        Args:
            job: a job of an admitted request.
            gone: a future that is done when the client disconnects.

        Raises:
            Problem: the model failed (424), the deadline has passed (504), or the server stops (503).
            ConnectionError: the client disconnected.
        """
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def tell(job: Job) -> None:
            loop.call_soon_threadsafe(done.set)

        job.on_done = tell
        with self._changed:
            if self._stopped:
                raise self._ended()
            self._waiting.add(job)
            self._changed.notify()
        finished = asyncio.ensure_future(done.wait())
        try:
            await self._wait(finished, gone, job.deadline)
            if job.problem is not None:
                raise job.problem
            return job.result
        finally:
            if not job.ended:
                with self._changed:
                    job.drop()
                    self._waiting.sweep()
            finished.cancel()

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # without this thread, requests would only time out
            log.critical("the queue failed", exc_info=error)
            with self._changed:
                self._stopped, self.failure = True, type(error).__name__
                self._give_up(self._waiting.left())

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not (units := self._waiting.take()) and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    self._give_up([*units, *self._waiting.left()])
                    return
            self._batch(units)
            units = []  # an idle thread must not keep references

    def _give_up(self, units: list[Unit]) -> None:
        for job in jobs_of(units):
            job.fail(self._ended())

    def _ended(self) -> Problem:
        """Why there is no result after the model's thread has ended."""
        if self.failure is None:
            return unavailable("the server is shutting down")
        return unavailable("the server failed and must be restarted; its log says why", 60.0)

    def check(self) -> None:
        """Raise Problem (503) if the model's thread has failed."""
        if self.failure is not None:
            raise self._ended()

    def _batch(self, units: list[Unit]) -> None:
        """Compute a batch; if it fails, compute each job separately, so that only the faulty one fails."""
        began, now = time.perf_counter(), time.monotonic()
        jobs = jobs_of(units)
        for job in jobs:
            job.began = now if job.began is None else job.began
        length = max(unit.length for unit in units)
        try:
            results = compute(units, length)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._batch([unit for unit in units if unit.job is job])
                return
            self._failed(jobs[0], error)
            return
        for unit, result in zip(units, results, strict=True):
            try:
                unit.job.take(unit, result)
            except Exception as error:
                self._failed(unit.job, error)
        if length:
            self._observed.batch(len(units), len(units) * length, len(jobs))
            self._measured(len(units), length, time.perf_counter() - began)

    def _failed(self, job: Job, error: Exception) -> None:
        if isinstance(error, Problem):
            job.fail(error)
            return
        log.error("the model failed", exc_info=error)
        job.fail(failed())

    def _measured(self, sequences: int, length: int, seconds: float) -> None:
        """Update the exponential sums from which the speed is computed; larger batches weigh more."""
        keep = 1 - SMOOTHING
        self._batches += 1
        self._recent_sequences = keep * self._recent_sequences + sequences
        self._recent_seconds = keep * self._recent_seconds + seconds
        self._recent_tokens = keep * self._recent_tokens + sequences * length
        self._waiting.seconds_per_token = self._recent_seconds / self._recent_tokens

    @property
    def _wait_of_a_newcomer(self) -> float:
        """Estimated seconds until a new request begins: of a large one, only the first batches precede it."""
        most, per_text = self._waiting.most_before_a_newcomer, self._seconds_per_text
        return sum((min(ticket.texts * per_text, most) for ticket in self._tickets), 0.0)

    @property
    def _seconds_per_text(self) -> float:
        """Measured seconds per sequence; 0 until enough batches were measured."""
        if self._batches < FEW_BATCHES:
            return 0.0
        return self._recent_seconds / self._recent_sequences
