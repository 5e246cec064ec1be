"""Topologies: which network learns from which. They are data: the train step knows neither roles nor counts.

`Edge(learner, source, gate, weight)` adds weight * tau^2 * KL(sg p_source || p_learner) to the learner's loss; with a
gate (teacher, student) only while that pair is in learning mode. Stars are the 2T1S and 1T2S settings of the paper
(table 7); chains are an extension of ours. `TOPOLOGIES` holds the kinds that a config can name.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence

Pair = tuple[str, str]  # (teacher, student)
_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclasses.dataclass(frozen=True)
class Edge:
    """Distillation term of one network: `learner` learns from `source`.

    Attributes:
      learner: name of the network whose loss has the term.
      source: name of the network that it learns from.
      gate: None, or the pair (teacher, student) = (learner, source) that has to be in learning mode.
      weight: factor of the term, at least 0.
    """

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
      nodes: names of the networks, by convention teachers first.
      edges: distillation terms between them.
      relay: nodes that are still updated while they are paused for a student: they learn from their own teachers.

    Raises:
      ValueError: if the topology is not valid; the message names the node or edge.
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
        """Gated (teacher, student) pairs, in the order of their edges."""
        return tuple(edge.gate for edge in self.edges if edge.gate)

    def edges_from(self, sources: frozenset[str]) -> tuple[Edge, ...]:
        """Returns the ungated edges from `sources` to other nodes, which the offline methods use."""
        return tuple(e for e in self.edges if e.gate is None and e.source in sources and e.learner not in sources)

    @property
    def middle(self) -> frozenset[str]:
        """Nodes that are a student in one gated pair and the teacher in another."""
        return frozenset(t for t, _ in self.pairs) & frozenset(s for _, s in self.pairs)


def pair(teacher: str, student: str, *, alpha: float = 1.0, beta: float = 1.0) -> Topology:
    """Creates one teacher-student pair.

    Args:
      teacher: name of the teacher.
      student: name of the student.
      alpha: weight of the student's edge from its teacher.
      beta: weight of the teacher's gated edge from its student.

    >>> tuple(str(edge) for edge in pair("t", "s").edges)
    ('s <- t', 't <- s')
    >>> pair("t", "s").pairs
    (('t', 's'),)
    """
    return Topology((teacher, student), _gated(teacher, student, alpha, beta))


def star(teachers: Sequence[str], students: Sequence[str], *, alpha: float = 1.0, beta: float = 1.0) -> Topology:
    """Creates one teacher with several students (1T2S, ...) or several teachers with one student (2T1S, ...).

    Every (teacher, student) is a gated pair, and the several teachers or students learn from each other.

    Args:
      teachers: names of the teachers.
      students: names of the students; one of the two sequences has one name.
      alpha: weight of each student's edge from its teacher.
      beta: weight of each teacher's gated edge from its student.

    >>> tuple(str(edge) for edge in star(["t"], ["a", "b"]).edges)
    ('a <- t', 't <- a', 'b <- t', 't <- b', 'a <- b', 'b <- a')
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
    """Creates a chain in which each network teaches the next one; a middle network is a student and a teacher.

    Args:
      names: two or more names, strongest network first.
      alpha: weight of each student's edge from its teacher.
      beta: weight of each teacher's gated edge from its student.
      relay: 'pause' (a middle network that is paused for its student is not updated) or 'learn' (it is updated
        with its other terms; only the gated term is dropped).

    >>> chain(["a", "b", "c"]).pairs
    (('a', 'b'), ('b', 'c'))
    >>> chain(["a", "b", "c"], relay="learn").relay
    frozenset({'b'})
    """
    names = tuple(names)
    if len(names) < 2:
        raise ValueError(f"a chain needs two or more networks, not {len(names)}: name them in topology.names")
    edges = [e for t, s in itertools.pairwise(names) for e in _gated(t, s, alpha, beta)]
    return _with_relay(Topology(names, tuple(edges)), relay)


def complete(names: Sequence[str]) -> Topology:
    """Creates ungated edges between all networks, as in deep mutual learning. A single network is allowed.

    >>> tuple(str(edge) for edge in complete(["a", "b"]).edges)
    ('a <- b', 'b <- a')
    """
    return Topology(tuple(names), _mutual(names))


def custom(
    nodes: Sequence[str],
    edges: Iterable[Edge | Sequence[object]],
    *,
    relay: str = "pause",
) -> Topology:
    """Creates a topology from its edges.

    Args:
      nodes: names of the networks.
      edges: `Edge`s or tuples (learner, source[, gate or None[, weight]]).
      relay: see `chain`.

    >>> custom(["t", "s"], [("s", "t", None, 0.5)]).edges
    (Edge(learner='s', source='t', gate=None, weight=0.5),)
    """
    return _with_relay(Topology(tuple(nodes), tuple(_as_edge(edge) for edge in edges)), relay)


@dataclasses.dataclass(frozen=True)
class TopologySettings:
    """Arguments of a builder in `TOPOLOGIES`.

    Attributes:
      networks: names of all networks of the run, or of their branches, in the config's order.
      teachers, students, names, edges, relay: the fields of config.topology.
      alpha: the method's weight of a student's edge from its teacher; 1 for methods without edge weights.
      beta: the method's weight of a teacher's gated edge from its student; likewise.
    """

    networks: Sequence[str]
    teachers: Sequence[str] = ()
    students: Sequence[str] = ()
    names: Sequence[str] = ()
    edges: Sequence[Edge | Sequence[object]] = ()
    relay: str = "pause"
    alpha: float = 1.0
    beta: float = 1.0


def _build_pair(settings: TopologySettings) -> Topology:
    if len(settings.teachers) != 1 or len(settings.students) != 1:
        raise ValueError("a pair has one name in teachers and one in students")
    return pair(settings.teachers[0], settings.students[0], alpha=settings.alpha, beta=settings.beta)


def _build_star(settings: TopologySettings) -> Topology:
    return star(settings.teachers, settings.students, alpha=settings.alpha, beta=settings.beta)


def _build_chain(settings: TopologySettings) -> Topology:
    return chain(settings.names, alpha=settings.alpha, beta=settings.beta, relay=settings.relay)


def _build_complete(settings: TopologySettings) -> Topology:
    return complete(settings.names or settings.networks)


def _build_custom(settings: TopologySettings) -> Topology:
    return custom(settings.names or settings.networks, settings.edges, relay=settings.relay)


# Values of config.topology.kind. A builder raises ValueError for settings that it cannot use.
TOPOLOGIES: dict[str, Callable[[TopologySettings], Topology]] = {
    "pair": _build_pair,
    "star": _build_star,
    "chain": _build_chain,
    "complete": _build_complete,
    "custom": _build_custom,
}


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
    checked: set[Pair] = set()
    known = ", ".join(topology.nodes)
    for edge in topology.edges:
        for name in (edge.learner, edge.source):
            if name not in topology.nodes:
                raise ValueError(f"edge {edge} names the unknown network {name!r}; known: {known}")
        if edge.learner == edge.source:
            raise ValueError(f"edge {edge}: a network cannot learn from itself")
        if (edge.learner, edge.source) in checked:
            raise ValueError(f"edge {edge} is listed twice in the topology")
        if not math.isfinite(edge.weight) or edge.weight < 0:
            raise ValueError(f"edge {edge}: weight {edge.weight} is not a finite number of at least 0")
        checked.add((edge.learner, edge.source))


def _check_gates(topology: Topology) -> None:
    ungated = {(edge.learner, edge.source) for edge in topology.edges if edge.gate is None}
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
        if (student, teacher) not in ungated:
            raise ValueError(
                f"gate ({teacher}, {student}): the student {student!r} never learns from its teacher; "
                f"add the edge {student} <- {teacher} without a gate"
            )
    _check_acyclic(topology)


def _check_acyclic(topology: Topology) -> None:
    """Removes the pairs whose teacher is no student until none is left; remaining pairs form a cycle.

    Raises:
      ValueError: if pairs remain.
    """
    pairs = set(topology.pairs)
    while pairs:
        students = {student for _, student in pairs}
        removable = {pair for pair in pairs if pair[0] not in students}
        if not removable:
            cycle = ", ".join(f"({t}, {s})" for t, s in sorted(pairs))
            raise ValueError(f"the gates {cycle} form a cycle: no network can wait for its own student's student")
        pairs -= removable


def _check_connected(topology: Topology) -> None:
    reached = {topology.nodes[0]}
    linked = [{edge.learner, edge.source} for edge in topology.edges]
    while new := {name for ends in linked if reached & ends for name in ends} - reached:
        reached |= new
    for name in topology.nodes:
        if name not in reached:
            raise ValueError(
                f"network {name!r} is disconnected: no edge links it to {topology.nodes[0]!r}, so it would train alone"
            )
