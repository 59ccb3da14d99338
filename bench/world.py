"""The world that the simulated fleet lives in, as it is drawn: what is assumed (docs/fleet.md).

A draw changes nothing but the source of chance that it is given.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

SEC = 1000
MIN = 60 * SEC
_HOUR = 60 * MIN
DAY = 24 * _HOUR
YEAR = 365 * DAY

AGENTS = tuple(f"a{index}" for index in range(8))
UPSTREAMS = 3
# The first delay of an agent's restarts, which doubles.
RESTART = 100
UNLUCKY = 90 * SEC
# How long a person takes to see that a bad deployment stays, and to deploy another.
PERSON = 2 * _HOUR


@dataclass(frozen=True, slots=True)
class World:
    """What is assumed; rates are per host and year, shares are probabilities."""

    deployments: float = 100.0
    bad: float = 0.03
    slow: float = 0.002
    full: float = 1.0  # the disk
    unplugged: float = 2.0  # the host's own network
    out_of_memory: float = 1.0
    upstream_down: float = 3.0  # of each upstream
    says_temporary: float = 0.5
    reacts: float = 0.2
    cascades: float = 0.1
    unlucky: float = 0.0  # deployments with an upstream that fails within UNLUCKY of them


@dataclass(slots=True)
class SimulatedAgent:
    """One agent: ``mean_ms`` from crash to crash by chance, and the upstream that it needs."""

    name: str
    mean_ms: float
    upstream: int | None
    needs_network: bool
    says_temporary: bool
    started_ms: int = 0
    started_under: str = ""
    run: int = 0
    ends_ms: int = 0
    delay_ms: int = RESTART
    up: bool = True


@dataclass(frozen=True, slots=True)
class Deployed:
    """A system: what its deployment changed, and ``broken``: how long each bad agent's runs last.

    ``dragged`` are agents that cannot live without a broken one, nor while a switch restarts it.
    """

    toplevel: str
    changed: frozenset[str]
    shared: tuple[str, ...] = ()
    broken: dict[str, float] = field(default_factory=dict)
    dragged: frozenset[str] = frozenset()
    slow: bool = False


@dataclass(slots=True)
class Trouble:
    """Something in the world that fails for a while, and makes agents crash."""

    kind: str
    agents: frozenset[str]
    until_ms: int
    words: str | None = None


def around(draw: Random, median: float, sigma: float) -> float:
    """Draw a log-normal length of time."""
    return median * math.exp(draw.gauss(0, sigma))


def draw_agent(draw: Random, world: World, name: str) -> SimulatedAgent:
    """Draw how an agent is."""
    chance = draw.random()
    if chance < 0.84:
        mean = draw.uniform(30, 180) * DAY
    elif chance < 0.99:
        mean = draw.uniform(1, 7) * DAY
    else:
        mean = DAY / math.exp(draw.uniform(math.log(2), math.log(24)))
    upstream = draw.randrange(UPSTREAMS) if draw.random() < 0.5 else None
    network = upstream is not None or draw.random() < 0.2
    return SimulatedAgent(name, mean, upstream, network, draw.random() < world.says_temporary)


def suffers(draw: Random, agent: SimulatedAgent, kind: str) -> bool:
    """Draw whether a trouble of the world hits an agent."""
    if kind == "unplugged":
        return agent.needs_network
    if kind.startswith("upstream"):
        return kind == f"upstream {agent.upstream}"
    return draw.random() < (0.7 if kind == "full" else 0.3)


def draw_deployment(draw: Random, world: World, toplevel: str, meant: Iterable[str]) -> Deployed:
    """Draw what a deployment changes, ``meant`` at least, and what it breaks."""
    share, shared = draw.random(), tuple[str, ...]()
    if share < 0.6:
        changed = {draw.choice(AGENTS)}
    elif share < 0.85:
        changed = set(draw.sample(AGENTS, draw.randint(1, 3)))
    else:
        changed = set(AGENTS)
        shared = ("kernel", "systemd") if draw.random() < 0.5 else ()
    changed |= set(meant)
    broken: dict[str, float] = {}
    chance, slow = draw.random(), False
    if chance < world.bad:
        victims = draw.sample(sorted(changed), min(len(changed), draw.choice((1, 1, 1, 1, 2))))
        mode = draw.random()
        lasts = 0.3 * SEC if mode < 0.7 else 10 * SEC if mode < 0.9 else 90 * SEC
        broken = dict.fromkeys(victims, lasts)
    elif chance < world.bad + world.slow:
        slow, broken = True, {draw.choice(sorted(changed)): 30.0 * MIN}
    unchanged = sorted(set(AGENTS) - changed)
    drags = bool(broken) and not slow and unchanged and draw.random() < world.cascades
    dragged = frozenset(draw.sample(unchanged, 1)) if drags else frozenset[str]()
    return Deployed(toplevel, frozenset(changed), shared, broken, dragged, slow)
