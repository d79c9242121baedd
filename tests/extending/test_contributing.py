"""The examples of CONTRIBUTING.md are the parts that the tests of this folder train with."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("name", ["head", "task", "encoder", "loss", "optimizer"])
def test_an_example_is_the_code_of_its_test_in_under_25_lines(name):
    shown = re.search(rf"\(`tests/extending/test_{name}\.py`\):\n\n```python\n(.*?)\n```", PAGE, re.DOTALL)
    tested = re.search(
        r"^# An? .*?\n(.*?)^# The end of it", (HERE / f"test_{name}.py").read_text(), re.MULTILINE | re.DOTALL
    )
    assert shown is not None and tested is not None
    assert shown[1] == tested[1].strip()
    assert len([line for line in shown[1].splitlines() if line]) < 25
