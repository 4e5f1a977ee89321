"""The nouns. All frozen: a function that wants another value returns another value, and tensors inside are never written to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from fedprune.storage.spilled import Stored


Params = dict[str, Tensor]
"""A network's parameters and buffers, each under one name, see tensors.py."""

Mask = dict[str, Tensor]
"""bool, True = alive; prunable names only; shapes as in Params."""

Scores = dict[str, Tensor]
"""float32 or float64; names and shapes of a Mask; higher = keep, -inf = never."""

Json = dict[str, Any]
"""A JSON object: what run.json, a ticket's provenance or the header of a message holds."""

Function = Callable[..., Any]
"""A function of torch or of a user, called with whatever it takes."""

Ctx = Any
"""The first argument of both passes of a torch.autograd.Function, to which any attribute can be set."""

SERVER = -1
"""The client number under which the server itself measures (on its proxy set)."""


@dataclass(frozen=True)
class InitialPruning:
    """One client trains and prunes the network alone: for at most `rounds` rounds, exchanging the fraction `swap` of the living
    every `every` of them."""

    rounds: int
    every: int
    swap: float


@dataclass(frozen=True)
class PruneEvent:
    """After `round` rounds: bring the mask to `density` (of all units), exchanging the fraction `swap` of the living.

    block: (i, n), if only the i-th of n blocks of layers takes part, counted from the output; None: all layers do.
    initial: what one client does alone before the event; None: nothing.
    """

    round: int
    density: float
    swap: float = 0.0
    block: tuple[int, int] | None = None
    initial: InitialPruning | None = None


class Condition(ABC):
    """A condition for which an event may wait: (outcomes of the round before, by name) -> whether it may happen.

    Its text (str) describes it. asks: how often it has to be asked, round after round, until it can be met. looser: what to
    type to have it met sooner.
    """

    asks: int = 1
    looser: str = "a condition in `when` that is met sooner"

    @abstractmethod
    def __call__(self, *args: Any, **outcomes: Any) -> bool: ...

    def problems(self, metric: str, larger_is_better: bool) -> list[str]:
        """Return why the condition does not fit a task that is judged by this metric, each with what to type instead."""
        return []


@dataclass(frozen=True)
class Gate:
    """A condition for which events wait, each in its turn: their rounds are then the earliest ones.

    stop: after that many rounds nothing is pruned any more. apart: the least number of rounds from one event to the next.
    """

    opens: Condition
    stop: int
    apart: int


@dataclass(frozen=True)
class Plan:
    """All that a run will do: its prune events in order, the number of rounds it trains, and what the events wait for."""

    events: tuple[PruneEvent, ...]
    rounds: int
    gate: Gate | None = None


@dataclass(frozen=True)
class Subnet:
    """A network and what is alive in it. `params[n] == params[n] * mask[n]` for every prunable n."""

    params: Params
    mask: Mask


@dataclass(frozen=True)
class Personal:
    """The position of one client with a mask of its own. It holds for the whole run: the mask, packed to bits (mask.pack), as
    bytes() gives them; the number of prune events that it has done, and the round of the last of them."""

    mask: bytes | Stored
    events: int = 0
    pruned: int = 0


@dataclass(frozen=True, slots=True)
class ClientState:
    """The state that a client keeps from one of its rounds to the next. It never travels.

    batchnorm: its private tensors of BatchNorm (federated.batchnorm=local). weights: the prunable tensors as it has trained
    them (whose.uncommon=own); of a client without a server, its whole network. optimizer: the optimizer's state of each
    parameter, by the parameter's number in the optimizer's order (federated.optimizer_state=kept). control: SCAFFOLD's c_k, by
    parameter. squared_gradients: their sums since the last prune event, by prunable tensor. mask: of a client without a server,
    the mask under which `weights` were trained, packed to bits; in an Update, the mask that it goes on with.
    """

    batchnorm: Params = field(default_factory=dict)
    weights: Params = field(default_factory=dict)
    optimizer: Mapping[int, Params] = field(default_factory=dict)
    control: Params = field(default_factory=dict)
    squared_gradients: Params = field(default_factory=dict)
    mask: bytes = b""

    @property
    def empty(self) -> bool:
        """True if the client keeps nothing."""
        return not (self.batchnorm or self.weights or self.optimizer or self.control or self.squared_gradients or self.mask)


@dataclass(frozen=True)
class ServerState:
    """The server's memory from round to round, beside its network: all that its optimizer and SCAFFOLD remember.

    momentum: the server optimizer's buffers, by kind. control: SCAFFOLD's c, the mean of all clients' controls, by parameter
    (empty where nothing is controlled, or nobody has trained yet). common: by client, the entries that the cohort of its last
    round had in common, packed to bits (whose.common=cohort, private_values.py).
    """

    momentum: Mapping[str, Params] = field(default_factory=dict)
    control: Params = field(default_factory=dict)
    common: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """Everything a run is between two rounds. A checkpoint is this value and nothing else.

    round: rounds that are done. clock: the position in the training run as rewinding counts it; learning rate, cohort and data
    order follow the clock, so a rewound network sees what it saw the first time. events: prune events that are done. anchors:
    parameters remembered by the clock at which they were taken. ticket: the weights that training started from after the last
    event. server_state: what the server keeps beside its network. kept: by client, the state that it keeps. up_bytes,
    down_bytes: sent so far. personal: by client, its own mask and its place in the plan. pruned: rounds that were done at the
    last event. Under a gate, opened: whether it lets the next event through; candidate: the mask that this event would have
    chosen now (empty if nobody asks). reached: the clients that have what is never trained, if anything is. With
    federated.regrown=server, stale: what dead entries were when they died, of the prunable names (else empty).
    """

    server: Subnet
    init: Params
    ticket: Params
    round: int = 0
    clock: int = 0
    events: int = 0
    anchors: Mapping[int, Params] = field(default_factory=dict)
    server_state: ServerState = field(default_factory=ServerState)
    kept: Mapping[int, ClientState] = field(default_factory=dict)
    personal: Mapping[int, Personal] = field(default_factory=dict)
    up_bytes: int = 0
    down_bytes: int = 0
    pruned: int = 0
    opened: bool = False
    candidate: Mask = field(default_factory=dict)
    reached: frozenset[int] = frozenset()
    stale: Params = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """The start of a client's round: what it is sent, and what it has kept. With `measure` empty it trains; otherwise it
    measures that evidence and trains nothing.

    about: the entries that the evidence is about: the living (to drop some), the dead (to grow some) or all. surviving: for
    evidence about a removal, the part of the mask that the removal would leave; the evidence is then about these entries.
    event: the prune event that the client carries out in this round (None: none); events: the number that it did before.
    common: the entries whose values travel, because others have them alive, too; of the others the client keeps its own (None:
    the values of all its living entries travel). control: SCAFFOLD's c, by parameter; zero where the mask is dead. newcomer:
    whether the tensors that nobody trains (federated/untrained.py) come with the job.

    Never on the wire: kept, the client's state from its last round; kept_mask, the mask that it has before it is sent anything,
    packed to bits (empty: none).
    """

    client: int
    round: int
    clock: int
    seed: int
    subnet: Subnet
    measure: tuple[str, ...] = ()
    about: str = "alive"
    surviving: Mask | None = None
    event: PruneEvent | None = None
    events: int = 0
    common: Mask | None = None
    control: Params = field(default_factory=dict)
    kept: ClientState = field(default_factory=ClientState)
    kept_mask: bytes = b""
    newcomer: bool = False


@dataclass(frozen=True)
class Update:
    """The result of a client's round: a trained subnet, or evidence about entries of the one it was sent; and what it keeps.

    `examples` weighs it in every mean; `logged` is what the module logged: by name, how values are reduced over the cohort, and
    this one; `pruned` says whether the job's event took place; `control` is the change of SCAFFOLD's c_k, zero where the mask
    of the job is dead; `kept` is the client's next state, which stays with it and is never on the wire.
    """

    client: int
    subnet: Subnet | None
    examples: int
    evidence: Mapping[str, Params] = field(default_factory=dict)
    about: str = "alive"
    metrics: Mapping[str, float] = field(default_factory=dict)
    logged: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    pruned: bool = False
    control: Params = field(default_factory=dict)
    kept: ClientState = field(default_factory=ClientState)
