"""Huge pages for the commands."""

import os
import platform
import subprocess
import sys

import pytest

from polyjax.runtime.memory import THP, TUNABLE

PROGRAM = """
import os, sys
from polyjax.runtime.memory import restart_with_huge_pages
restart_with_huge_pages()
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], __debug__)
"""


def start(**environment: str) -> tuple[int, str]:
    process = subprocess.Popen(
        [sys.executable, "-O", "-c", PROGRAM, "--a flag", "value"],
        env={k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate(timeout=120)
    pid, _, rest = out.strip().partition(" ")
    assert process.returncode == 0
    assert int(pid) == process.pid, "the same process, so that signals and locks go on working"
    return process.pid, rest


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not THP.exists() or "[madvise]" not in THP.read_text(),
    reason="this system does not give huge pages on request",
)
def test_the_command_starts_again_as_it_was_given():
    assert start()[1] == f"{TUNABLE} ['--a flag', 'value'] False"


def test_the_users_own_setting_is_left_alone():
    assert (
        start(GLIBC_TUNABLES="glibc.malloc.check=0")[1] == "glibc.malloc.check=0 ['--a flag', 'value'] False"
    )
