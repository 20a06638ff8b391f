"""Static analysis of the contracts, over the compiler's own syntax tree.

slither 0.11 does not read Vyper 0.4 (its parser stops at the new call nodes and knows no modules), so the
checks of it that matter here are made by hand: what may not be used at all, what must come before money is
sent, and the project's own rules for contracts.
"""

from __future__ import annotations

import re

import pytest
import vyper
from contracts_kit import SOURCES
from vyper import ast as vy
from vyper.ast import parse_to_ast

FILES = sorted([*SOURCES.glob("*.vy"), *(SOURCES / "modules").glob("*.vy")])
FORBIDDEN_CALLS = {
    "raw_create",
    "create_minimal_proxy_to",
    "create_copy_of",
    "create_from_blueprint",
    "selfdestruct",
    "raw_log",
    "raw_revert",
    "send",
    "print",
    "blockhash",
    "sqrt",
    "isqrt",
}
MONEY_LEAVES = {"purses.vy": ["withdraw"], "registry.vy": ["take_stake"], "earnings.vy": ["_cash_out"]}

each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)


def tree_of(path):
    return parse_to_ast(path.read_text(), module_path=str(path), resolved_path=str(path))


def called(node):
    """Names of the functions called anywhere in a node."""
    names = []
    for call in node.get_descendants(vy.Call):
        names.append(call.func.id if isinstance(call.func, vy.Name) else getattr(call.func, "attr", ""))
    return names


@each_file
def test_the_compiler_is_pinned(path):
    first = path.read_text().splitlines()[0]
    assert first == f"# pragma version {vyper.__version__}"


@each_file
def test_nothing_dangerous_is_used(path):
    names = set(called(tree_of(path)))
    assert not names & FORBIDDEN_CALLS
    assert not any(n.startswith("unsafe_") for n in names), "arithmetic is always checked"
    text = path.read_text()
    for word in (
        "tx.origin",
        "is_delegate_call",
        "max_outsize",
        "block.prevrandao",
        "__default__",
        "revert_on_failure",
    ):
        assert word not in text


@each_file
def test_money_leaves_in_known_places_as_the_last_act(path):
    found = []
    for function in tree_of(path).get_children(vy.FunctionDef):
        if "raw_call" not in called(function):
            continue
        found.append(function.name)
        assert "raw_call" in called(function.body[-1]), "nothing happens after the money is sent"
        assert sum(n == "raw_call" for n in called(function)) == 1
        if not function.name.startswith("_"):
            decorators = {d.id for d in function.decorator_list if isinstance(d, vy.Name)}
            assert "nonreentrant" in decorators
    assert found == MONEY_LEAVES.get(path.name, [])


@each_file
def test_every_function_is_documented_in_full(path):
    tree = tree_of(path)
    assert tree.doc_string is not None
    for tag in ("@title", "@license", "@author", "@notice"):
        assert tag in tree.doc_string.value
    for function in tree.get_children(vy.FunctionDef):
        text = function.doc_string.value if function.doc_string else ""
        assert "@notice" in text, function.name
        assert re.findall(r"@param (\w+)", text) == [a.arg for a in function.args.args], function.name
        assert ("@return" in text) == (function.returns is not None), function.name


@each_file
def test_every_refusal_says_which_module_and_why(path):
    for node in tree_of(path).get_descendants(vy.Assert):
        assert isinstance(node.msg, vy.Str), f"line {node.lineno} gives no reason"
        assert re.fullmatch(rf"{path.stem}: [a-z ]+", node.msg.value), node.msg.value


@each_file
def test_external_functions_are_the_contracts_own(path):
    """A module adds an ability, never a function that anyone can call."""
    if path.parent.name != "modules":
        return
    for function in tree_of(path).get_children(vy.FunctionDef):
        decorators = {d.id for d in function.decorator_list if isinstance(d, vy.Name)}
        assert "internal" in decorators, function.name


def test_nobody_owns_anything():
    for path in FILES:
        text = path.read_text().lower()
        for word in ("owner", "admin", "pause", "upgrade"):
            uses = [line for line in text.splitlines() if word in line and "no owner" not in line]
            assert not uses or (word == "owner" and all("their owner" in u for u in uses)), (path.name, uses)
