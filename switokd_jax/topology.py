"""Who learns from whom: a topology is data, and nothing in the step knows roles or counts.

`Edge(learner, source, gate, weight)` adds weight * tau^2 * KL(sg p_source || p_learner) to the learner's
loss; with a gate (teacher, student) only while that pair is in learning mode. Stars are the 2T1S and 1T2S
settings of the paper (table 7); chains are ours.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Sequence

Pair = tuple[str, str]  # (teacher, student)
_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclasses.dataclass(frozen=True)
class Edge:
    """`learner` learns from `source`; `gate` = (teacher, student) = (learner, source) or None."""

    learner: str
    source: str
    gate: Pair | None = None
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.learner} <- {self.source}"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Networks and the edges between them, validated on creation.

    Attributes:
      nodes: names of the networks, teachers first by convention.
      edges: what they learn from each other.
      relay: nodes that keep on learning from above while they are paused for a node below.

    Raises:
      ValueError: naming the node or edge at fault.
    """

    nodes: tuple[str, ...]
    edges: tuple[Edge, ...] = ()
    relay: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        _check_nodes(self)
        _check_edges(self)
        _check_gates(self)
        _check_connected(self)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The gated (teacher, student) pairs, in the order of their edges."""
        return tuple(edge.gate for edge in self.edges if edge.gate)

    def edges_from(self, sources: frozenset[str]) -> tuple[Edge, ...]:
        """The ungated edges from these nodes to others: what the offline methods use."""
        return tuple(e for e in self.edges if e.gate is None and e.source in sources and e.learner not in sources)

    @property
    def middle(self) -> frozenset[str]:
        """Nodes that are a student in one gated pair and a teacher in another."""
        return frozenset(t for t, _ in self.pairs) & frozenset(s for _, s in self.pairs)


def pair(teacher: str, student: str, *, alpha: float = 1.0, beta: float = 1.0) -> Topology:
    """One teacher, one student; alpha weights the student's term, beta the gated way back."""
    return Topology((teacher, student), _gated(teacher, student, alpha, beta))


def star(teachers: Sequence[str], students: Sequence[str], *, alpha: float = 1.0, beta: float = 1.0) -> Topology:
    """One teacher with many students (1T2S, ...) or many teachers with one student (2T1S, ...).

    Every (teacher, student) is a gated pair, and the networks of the many side learn from each other.
    """
    teachers, students = tuple(teachers), tuple(students)
    if min(len(teachers), len(students)) != 1:
        raise ValueError(
            f"a star has one teacher or one student, not {len(teachers)} teachers ({', '.join(teachers)}) "
            f"and {len(students)} students ({', '.join(students)}): use kind 'custom' for other shapes"
        )
    gated = [e for t in teachers for s in students for e in _gated(t, s, alpha, beta)]
    many = teachers if len(teachers) > 1 else students
    return Topology(teachers + students, (*gated, *_mutual(many)))


def chain(names: Sequence[str], *, alpha: float = 1.0, beta: float = 1.0, relay: str = "pause") -> Topology:
    """Strongest first: each network teaches the next one, so a middle one is student and teacher.

    Args:
      names: two or more names.
      alpha: weight of each student's term.
      beta: weight of each gated way back.
      relay: 'pause' (a middle network that is paused for the one below takes no step) or 'learn' (it
        goes on learning from above and drops only the gated term).
    """
    names = tuple(names)
    if len(names) < 2:
        raise ValueError(f"a chain needs two or more networks, not {len(names)}: name them in topology.names")
    edges = [e for t, s in itertools.pairwise(names) for e in _gated(t, s, alpha, beta)]
    return _with_relay(Topology(names, tuple(edges)), relay)


def complete(names: Sequence[str]) -> Topology:
    """Every ordered pair of networks, no gates (deep mutual learning). One network alone is allowed."""
    return Topology(tuple(names), _mutual(names))


def custom(
    nodes: Sequence[str],
    edges: Iterable[Edge | Sequence[object]],
    *,
    relay: str = "pause",
) -> Topology:
    """A topology edge by edge: `Edge`s or tuples (learner, source[, gate or None[, weight]])."""
    return _with_relay(Topology(tuple(nodes), tuple(_as_edge(edge) for edge in edges)), relay)


def _gated(teacher: str, student: str, alpha: float, beta: float) -> tuple[Edge, Edge]:
    return Edge(student, teacher, None, alpha), Edge(teacher, student, (teacher, student), beta)


def _mutual(names: Sequence[str]) -> tuple[Edge, ...]:
    return tuple(Edge(learner, source) for learner, source in itertools.permutations(names, 2))


def _with_relay(topology: Topology, relay: str) -> Topology:
    if relay not in ("pause", "learn"):
        raise ValueError(f"relay is 'pause' or 'learn', not {relay!r}")
    return dataclasses.replace(topology, relay=topology.middle if relay == "learn" else frozenset())


def _as_edge(raw: Edge | Sequence[object]) -> Edge:
    if isinstance(raw, Edge):
        return raw
    if isinstance(raw, str) or not isinstance(raw, Sequence) or not 2 <= len(raw) <= 4:
        raise ValueError(f"edge {raw!r} is not (learner, source, gate or None, weight)")
    learner, source = raw[:2]
    gate = raw[2] if len(raw) > 2 else None
    weight = raw[3] if len(raw) > 3 else 1.0
    if not isinstance(learner, str) or not isinstance(source, str):
        raise ValueError(f"edge {raw!r}: learner and source are names of networks")
    if gate is not None:
        if isinstance(gate, str) or not isinstance(gate, Sequence) or len(gate) != 2:
            raise ValueError(f"edge {learner} <- {source}: gate {gate!r} is not (teacher, student)")
        gate = (str(gate[0]), str(gate[1]))
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ValueError(f"edge {learner} <- {source}: weight {weight!r} is not a number")
    return Edge(learner, source, gate, float(weight))


def _check_nodes(topology: Topology) -> None:
    if not topology.nodes:
        raise ValueError("a topology needs at least one network")
    for name in topology.nodes:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"network name {name!r} is not a word of letters, digits and '_'")
        if topology.nodes.count(name) > 1:
            raise ValueError(f"network {name!r} is named {topology.nodes.count(name)} times in the topology")
    for name in sorted(topology.relay - topology.middle):
        raise ValueError(f"relay node {name!r} is not a teacher and a student at once")


def _check_edges(topology: Topology) -> None:
    seen: set[Pair] = set()
    known = ", ".join(topology.nodes)
    for edge in topology.edges:
        for name in (edge.learner, edge.source):
            if name not in topology.nodes:
                raise ValueError(f"edge {edge} names the unknown network {name!r}; known: {known}")
        if edge.learner == edge.source:
            raise ValueError(f"edge {edge}: a network cannot learn from itself")
        if (edge.learner, edge.source) in seen:
            raise ValueError(f"edge {edge} stands twice in the topology")
        if not math.isfinite(edge.weight) or edge.weight < 0:
            raise ValueError(f"edge {edge}: weight {edge.weight} is not a finite number of at least 0")
        seen.add((edge.learner, edge.source))


def _check_gates(topology: Topology) -> None:
    plain = {(edge.learner, edge.source) for edge in topology.edges if edge.gate is None}
    for edge in topology.edges:
        if edge.gate is None:
            continue
        teacher, student = edge.gate
        for name in edge.gate:
            if name not in topology.nodes:
                raise ValueError(f"gate {edge.gate} of edge {edge} names the unknown network {name!r}")
        if edge.gate != (edge.learner, edge.source):
            raise ValueError(
                f"gate {edge.gate} of edge {edge}: the gate's teacher is the edge's learner and its "
                f"student the edge's source, so it can only be ({edge.learner}, {edge.source})"
            )
        if (student, teacher) not in plain:
            raise ValueError(
                f"gate ({teacher}, {student}): the student {student!r} never learns from its teacher; "
                f"add the edge {student} <- {teacher} without a gate"
            )
    _check_acyclic(topology)


def _check_acyclic(topology: Topology) -> None:
    """Removes networks without a teacher above them until none is left; what stays is on a cycle."""
    pairs = set(topology.pairs)
    while pairs:
        taught = {student for _, student in pairs}
        free = {pair for pair in pairs if pair[0] not in taught}
        if not free:
            cycle = ", ".join(f"({t}, {s})" for t, s in sorted(pairs))
            raise ValueError(f"the gates {cycle} form a cycle: no network can wait for its own student's student")
        pairs -= free


def _check_connected(topology: Topology) -> None:
    reached = {topology.nodes[0]}
    links = [(edge.learner, edge.source) for edge in topology.edges]
    while grown := {n for link in links if reached & set(link) for n in link} - reached:
        reached |= grown
    for name in topology.nodes:
        if name not in reached:
            raise ValueError(
                f"network {name!r} is disconnected: no edge links it to {topology.nodes[0]!r}, so it would train alone"
            )
