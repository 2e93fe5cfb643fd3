"""The pure packages read no clock, random source, environment, file or socket."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "elasticmoe"
PURE = ("spec", "plan", "messages", "controller", "simulator")
ALLOWED = {
    "abc", "asyncio", "bisect", "collections", "copy", "dataclasses", "datetime", "difflib",
    "enum", "fractions", "functools", "hashlib", "heapq", "importlib", "itertools", "json",
    "logging", "math", "operator", "re",
    "statistics", "string", "textwrap", "tomllib", "types", "typing",
    "elasticmoe", "numpy", "pydantic", "pydantic_core", "scipy",
}  # fmt: skip
FORBIDDEN_CALLS = {"open", "input", "print", "exec", "eval", "__import__"}
FORBIDDEN_METHODS = {"now", "today", "utcnow", "time", "sleep", "open_connection", "wait_for"}
"""Of the allowed modules; queues and locks of asyncio, and dates as values, are pure."""
FILES = sorted(path for name in PURE for path in (PACKAGE / name).rglob("*.py"))


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def _called(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


def _methods_called(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.func.attr


def _unseeded_random(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        call = ast.unparse(node.func)
        if ".random." in call and not (call.endswith(("default_rng", "Philox")) and node.args):
            yield ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_pure_file_uses_only_what_is_pure(path: Path) -> None:
    tree = ast.parse(path.read_text())

    assert set(_imported(tree)) <= ALLOWED
    assert set(_called(tree)) & FORBIDDEN_CALLS == set()
    assert set(_methods_called(tree)) & FORBIDDEN_METHODS == set()
    assert list(_unseeded_random(tree)) == []


def _named(tree: ast.AST) -> Iterator[str]:
    """Names and text in code; sentences of docstrings and comments are not."""
    sentences = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.Constant) and id(node) not in sentences:
            yield str(node.value)


def test_only_the_groups_name_a_back_end() -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for name in _named(ast.parse(path.read_text()))
        if any(back_end in name.lower() for back_end in ("gloo", "nccl", "processgroup"))
    }

    assert found == {"runtime/groups.py"}
