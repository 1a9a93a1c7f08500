"""SECURITY.md names a test for each promise, and each of them is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROMISES = re.findall(r"^\| .+ \| `(.+)::(.+)` \|$", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_there_are_promises():
    table = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("| Promise | Test |")[2]
    assert len(PROMISES) == len(re.findall(r"^\| [^-]", table, re.MULTILINE)) > 30


@pytest.mark.parametrize(("path", "name"), PROMISES)
def test_the_test_of_a_promise_exists(path, name):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert name in found
