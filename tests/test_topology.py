"""Builders against the edges they promise, and bad topologies against their messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from switokd_jax import topology
from switokd_jax.topology import Edge


def edges(t: topology.Topology) -> set[tuple[str, str, topology.Pair | None, float]]:
    return {(e.learner, e.source, e.gate, e.weight) for e in t.edges}


def test_pair() -> None:
    t = topology.pair("t", "s", alpha=2.0, beta=0.5)
    assert t.nodes == ("t", "s")
    assert t.pairs == (("t", "s"),)
    assert edges(t) == {("s", "t", None, 2.0), ("t", "s", ("t", "s"), 0.5)}


def test_star_of_teachers() -> None:
    t = topology.star(["a", "b"], ["s"])
    assert t.pairs == (("a", "s"), ("b", "s"))
    assert edges(t) == {
        ("s", "a", None, 1.0),
        ("s", "b", None, 1.0),
        ("a", "s", ("a", "s"), 1.0),
        ("b", "s", ("b", "s"), 1.0),
        ("a", "b", None, 1.0),
        ("b", "a", None, 1.0),
    }


def test_star_of_students() -> None:
    t = topology.star(["t"], ["a", "b", "c"])
    assert t.pairs == (("t", "a"), ("t", "b"), ("t", "c"))
    assert len(t.edges) == 3 * 2 + 3 * 2


def test_chain() -> None:
    t = topology.chain(["a", "b", "c", "d"])
    assert t.pairs == (("a", "b"), ("b", "c"), ("c", "d"))
    assert t.middle == {"b", "c"}
    assert t.relay == frozenset()
    assert topology.chain(["a", "b", "c"], relay="learn").relay == {"b"}


def test_complete() -> None:
    t = topology.complete(["a", "b", "c"])
    assert len(t.edges) == 6
    assert t.pairs == ()
    assert topology.complete(["alone"]).edges == ()


def test_custom_takes_tuples_and_edges() -> None:
    t = topology.custom(["t", "s"], [("s", "t"), ["t", "s", ["t", "s"], 2]])
    assert edges(t) == {("s", "t", None, 1.0), ("t", "s", ("t", "s"), 2.0)}
    assert topology.custom(["t", "s"], t.edges) == t


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no nodes": (lambda: topology.complete([]), "at least one network"),
    "unknown node": (lambda: topology.custom(["a", "b"], [("a", "b"), ("a", "zed")]), "unknown network 'zed'"),
    "self edge": (lambda: topology.custom(["a", "b"], [("a", "a")]), "a <- a.*itself"),
    "duplicate edge": (
        lambda: topology.custom(["a", "b"], [("a", "b"), ("a", "b", None, 2.0)]),
        "a <- b is .* twice",
    ),
    "duplicate node": (lambda: topology.complete(["a", "a"]), "'a' is named 2 times"),
    "a name that is no word": (lambda: topology.complete(["a/b", "c"]), "'a/b' is not a word"),
    "gate without its edge": (lambda: topology.custom(["a", "b"], [("a", "b", ("a", "b"))]), r"add the edge b <- a"),
    "gated way forth": (
        lambda: topology.custom(["a", "b"], [("a", "b", ("a", "b")), ("b", "a", ("b", "a"))]),
        "never learns",
    ),
    "gate of others": (
        lambda: topology.custom(["a", "b", "c"], [("a", "b", ("a", "c")), ("c", "a"), ("b", "a")]),
        r"gate \('a', 'c'\) of edge a <- b",
    ),
    "gate with an unknown node": (lambda: topology.custom(["a", "b"], [("a", "b", ("a", "zed"))]), "'zed'"),
    "disconnected": (lambda: topology.custom(["a", "b", "c"], [("a", "b")]), "'c' is disconnected"),
    "weight": (lambda: topology.custom(["a", "b"], [("a", "b", None, float("nan"))]), "weight nan"),
    "negative weight": (lambda: topology.pair("a", "b", alpha=-1.0), "weight -1"),
    "relay": (lambda: topology.chain(["a", "b"], relay="go"), "'go'"),
    "relay of an end": (
        lambda: topology.Topology(("a", "b"), (Edge("a", "b"),), frozenset({"a"})),
        "relay node 'a'",
    ),
    "chain of one": (lambda: topology.chain(["a"]), "two or more"),
    "star of two and two": (lambda: topology.star(["a", "b"], ["c", "d"]), "2 teachers"),
    "an edge of one": (lambda: topology.custom(["a", "b"], [("a",)]), "is not"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD.keys())
def test_bad_topology(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_cycle_of_gates() -> None:
    ring = [("a", "b"), ("b", "c"), ("c", "a")]
    forth = [Edge(s, t) for t, s in ring]
    back = [Edge(t, s, (t, s)) for t, s in ring]
    with pytest.raises(ValueError, match="form a cycle"):
        topology.custom("abc", [*forth, *back])
