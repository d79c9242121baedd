"""The command in a process of its own: readiness, signals, kills, mistakes on its command line."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from conftest import FAST_COMPILATION
from polyjax import Ranker
from polyjax.cli.serve import KEY_VARIABLE, keys_of, parse
from polyjax.errors import InputError
from polyjax.inference.score_map import ScoreMap
from polyjax.retrieval.index.store import open_index as stored
from polyjax.runs import ModelCard, write_model, write_score_map
from serving import QUERY, TEXT, TEXTS, sentences, tiny_scorer, tiny_tokenizer

CANDIDATES = list(dict.fromkeys(sentences(60, seed=3, longest=9)))
MAP = ScoreMap(slope=0.25, offset=-0.5)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run directory of a random model, with a score map."""
    folder, scorer = tmp_path_factory.mktemp("runs") / "mine", tiny_scorer("poly")
    write_model(folder, scorer, ModelCard(model=scorer.settings, text=TEXT), tiny_tokenizer(), config={})
    write_score_map(folder, MAP)
    return folder


class Process:
    """``polyjax serve`` in a process.

    Args:
        arguments: of the command.
    """

    def __init__(self, *arguments: object, ready: bool = True):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        environment = {**os.environ, "XLA_FLAGS": FAST_COMPILATION}
        words = ["-m", "polyjax", "serve", *map(str, arguments), "--port", str(self.port)]
        self.process = subprocess.Popen(
            [sys.executable, *words], env=environment, stderr=subprocess.PIPE, text=True
        )
        self.statuses: list[int] = []
        try:
            if ready:
                self.wait(200)
        except BaseException:  # or the process would outlive the test
            self.process.kill()
            self.process.communicate()
            raise

    def wait(self, status: int) -> None:
        """Until /health answers so; what it answered before is kept in ``statuses``."""
        deadline = time.monotonic() + 180
        while self.health() != status:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def health(self) -> int:
        """The status of /health; 0 where nobody listens."""
        try:
            status = self.ask("GET", "/health")[0]
        except OSError:
            status = 0
        self.statuses.append(status)
        return status

    def ask(self, method: str, path: str, body=None):
        """Status, headers and value of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
            is_json = answer.headers["content-type"] == "application/json"
            return answer.status, answer.headers, json.loads(data) if is_json and data else data

    def end(self, sig: int = signal.SIGTERM) -> tuple[int, list[dict]]:
        """Send a signal; the exit status, and the log."""
        self.process.send_signal(sig)
        _, log = self.process.communicate(timeout=60)
        lines = [line for line in log.splitlines() if not line.startswith("encoding")]  # progress
        return self.process.returncode, [json.loads(line) for line in lines]


@contextlib.contextmanager
def process(*arguments: object, ready: bool = True):
    """A process that is gone afterwards, whatever happens."""
    found = Process(*arguments, ready=ready)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.process.kill()
        found.process.communicate()


def test_port_0_is_a_free_one_that_the_log_names(run_dir):
    words = [sys.executable, "-m", "polyjax", "serve", str(run_dir), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            line = next(line for line in map(json.loads, server.stderr) if line["message"] == "listening")
            connection = http.client.HTTPConnection(line["host"], line["port"], timeout=60)
            with contextlib.closing(connection):
                connection.request("GET", "/health")
                assert line["port"] > 0 and connection.getresponse().status in (200, 503)
        finally:
            server.kill()


def test_the_command_serves_a_run_with_its_candidates_and_its_score_map(run_dir, tmp_path):
    (tmp_path / "replies.txt").write_text("\n".join(CANDIDATES))
    with process(run_dir, "--candidates", tmp_path / "replies.txt") as server:
        # It listens while it compiles, and says that it is not ready.
        assert server.statuses[-1] == 200 and set(server.statuses) <= {0, 503, 200}
        ranker = Ranker.load(run_dir)
        status, headers, found = server.ask("POST", "/v2/rerank", {"query": QUERY, "documents": TEXTS})
        assert status == 200
        scores = [one["relevance_score"] for one in found["results"]]
        order = [one["index"] for one in found["results"]]
        np.testing.assert_allclose(scores, MAP(ranker.score(QUERY, TEXTS))[order], rtol=1e-4)
        info = server.ask("GET", "/info")[2]
        assert info["model_id"] == "mine" and info["polyjax"]["calibrated"] is True
        best = server.ask("POST", "/search", {"query": QUERY, "top_n": 3})[2]["results"]
        expected = [one.text for one in ranker.rank(QUERY, CANDIDATES, 3)]
        assert [one["document"]["text"] for one in best] == expected
        status, log = server.end()
    assert status == 0
    assert any(line["message"] == "request" and line["path"] == "/search" for line in log)
    assert all({"time", "level", "message"} <= set(line) for line in log)


def test_sigterm_answers_what_was_admitted_and_refuses_the_rest(run_dir):
    texts = sentences(300)
    with process(run_dir, "--max-batch-tokens", 16) as server, ThreadPoolExecutor(8) as threads:
        admitted = [
            threads.submit(server.ask, "POST", "/rerank", {"query": f"{QUERY} {i}", "texts": texts})
            for i in range(8)
        ]
        while b"te_queue_size 8.0" not in server.ask("GET", "/metrics")[2]:
            assert not any(one.done() for one in admitted), "too fast to be interrupted"
        server.process.send_signal(signal.SIGTERM)
        server.wait(503)
        status, headers, refused = server.ask("POST", "/rerank", {"query": QUERY, "texts": TEXTS})
        assert status == 503 and "shutting down" in refused["error"] and headers["retry-after"]
        answers = [one.result() for one in admitted]
        assert [status for status, _, _ in answers] == [200] * 8
        assert all(len(found) == 300 for _, _, found in answers)
        assert server.process.wait(30) == 0
        with pytest.raises(OSError):
            server.ask("GET", "/health")


def test_a_second_signal_ends_it_at_once(run_dir):
    with process(run_dir, "--max-batch-tokens", 16) as server, ThreadPoolExecutor(8) as threads:
        for i in range(8):
            body = {"query": f"{QUERY} {i}", "texts": sentences(300, seed=i)}
            threads.submit(server.ask, "POST", "/rerank", body)
        while b"te_queue_size 8.0" not in server.ask("GET", "/metrics")[2]:
            pass
        server.process.send_signal(signal.SIGTERM)
        server.wait(503)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 2


def test_kill_9_while_candidates_are_added_leaves_the_index_before_or_after(run_dir, tmp_path):
    folder, known = tmp_path / "index", set(CANDIDATES)
    Ranker.load(run_dir).index(CANDIDATES, folder)
    for attempt, delay in enumerate((0.0, 0.03, 0.1)):
        new = {f"reply {i} of attempt {attempt}" for i in range(250)}
        with (
            process(run_dir, "--index", folder, "--allow-changes", "--max-batch-tokens", 64) as server,
            ThreadPoolExecutor(1) as thread,
        ):
            adding = thread.submit(server.ask, "POST", "/index", {"documents": sorted(new)})
            while not adding.done() and not (folder / "building").exists():
                time.sleep(0.001)
            time.sleep(delay)
            server.process.kill()
            server.process.wait(30)
            done = adding.exception() is None and adding.result()[0] == 200
            assert done or adding.exception() is not None, adding.result()
        held = {text for _, text in stored(folder).items()}
        assert held in (known, known | new), (len(held), len(known))
        assert held == known | new or not done, "what was answered is there"
        known = held
    with process(run_dir, "--index", folder, "--allow-changes") as server:
        status, _, state = server.ask("POST", "/index", {"documents": ["one more"]})
        assert (status, state["candidates"]) == (200, len(known) + 1)
        assert server.end()[0] == 0


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        (["--index", "a", "--candidates", "b"], "candidates"),
        (["--rerank", "a"], "rerank"),
        (["--timeout", "0"], "timeout"),
        (["--max-batch-tokens", "0"], "max_batch_tokens"),
    ],
)
def test_mistakes_of_the_command_line(arguments, argument):
    with pytest.raises(InputError) as error:
        parse(["runs/mine", *arguments])
    assert argument in str(error.value).replace("-", "_")


def test_keys_come_from_the_flag_the_file_and_the_environment(tmp_path, monkeypatch):
    (tmp_path / "keys").write_text("one\n\n  two \n")
    monkeypatch.setenv(KEY_VARIABLE, "three")
    command = parse(["runs/mine", "--api-key", "four", "--api-key-file", str(tmp_path / "keys")])
    assert sorted(keys_of(command)) == ["four", "one", "three", "two"]
    monkeypatch.delenv(KEY_VARIABLE)
    assert keys_of(parse(["runs/mine"])) == []
    (tmp_path / "keys").write_text("\n")
    with pytest.raises(InputError):
        keys_of(parse(["runs/mine", "--api-key-file", str(tmp_path / "keys")]))


def test_a_port_that_is_in_use_is_said_before_anything_is_loaded(run_dir):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = ["-m", "polyjax", "serve", str(run_dir), "--port", str(taken.getsockname()[1])]
        done = subprocess.run([sys.executable, *words], stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2
    assert (
        done.stderr.startswith("error: --port: cannot listen at 127.0.0.1:") and done.stderr.count("\n") == 1
    )


def test_requests_in_turn_on_one_connection_wait_for_no_acknowledgement(run_dir):
    """40 ms each if the kernel holds a reply's body back until the client has acknowledged its head."""
    body = json.dumps({"query": QUERY, "texts": TEXTS})
    with process(run_dir) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        outside = []  # seconds of each request that are not the server's
        for _ in range(40):
            time.sleep(0.02)
            began = time.perf_counter()
            connection.request("POST", "/rerank", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            outside.append(time.perf_counter() - began - float(answer.headers["x-total-time"]) / 1e3)
        connection.close()
    assert float(np.median(outside)) < 0.02
