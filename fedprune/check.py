"""What is wrong with a configuration: everything at once, before the first batch, each with what to type instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from fedprune.errors import ConfigError, DataError, Incompatible
from fedprune.federated.availability import Fates, heard
from fedprune.federated.ballot import by_layer_density
from fedprune.federated.beta_mode import BetaMode
from fedprune.federated.nested import Nested
from fedprune.federated.sampled_masks import SampledMasks
from fedprune.federated.sampling import cohort
from fedprune.federated.where import Cohort, Server
from fedprune.federated.whose import Voted, Whose
from fedprune.pruning.companions import CHOOSE
from fedprune.pruning.criterion import Adjusted, Criterion
from fedprune.pruning.cycle import Axes
from fedprune.pruning.evidence import (
    FROM_CLIENTS,
    FROM_DATA,
    FROM_TRAINING,
    OBSTACLES,
    OUTCOMES,
    OUTCOMES_OF_CLIENTS,
    known,
    needs,
    unknown,
)
from fedprune.pruning.network import Network
from fedprune.pruning.own_density import OwnDensity
from fedprune.pruning.rank import nearest
from fedprune.pruning.regrown import RULES
from fedprune.pruning.rewind import CONTROLS, LearningRate, Rewind
from fedprune.pruning.scope import is_layerwise
from fedprune.pruning.unit import weights
from fedprune.pruning.what import What
from fedprune.ticket.begin import broken_units
from fedprune.types import SERVER, Mask, Plan

T = TypeVar("T")


class Problems:
    """Collects problems, so that all are reported together."""

    def __init__(self) -> None:
        self._wrong: list[str] = []
        self._incompatible: list[str] = []

    def attempt(self, function: Callable[..., T], *args: Any) -> T:
        """The function's value; or nothing that may be used, if it found a problem (`stop_if_any` before using it)."""
        try:
            return function(*args)
        except Incompatible as error:
            self._incompatible += error.problems
        except ConfigError as error:
            self._wrong += error.problems
        except DataError as error:
            self._wrong.append(str(error))
        return None  # type: ignore[return-value]

    def add(self, problems: Iterable[str]) -> None:
        """Problems of single values."""
        self._wrong += problems

    def add_incompatible(self, problems: Iterable[str]) -> None:
        """Problems of combinations of values, each of which is fine."""
        self._incompatible += problems

    def stop_if_any(self) -> None:
        """Raises ConfigError with all problems so far; Incompatible if only combinations are at fault."""
        if self._wrong:
            raise ConfigError(self._wrong + self._incompatible)
        if self._incompatible:
            raise Incompatible(*self._incompatible)


def ranges(config: Any) -> list[str]:
    """Scalars that are out of range."""
    federated = config.federated
    rules = {
        f"density={config.density} is the fraction alive at the end: more than 0, at most 1": 0 < config.density <= 1,
        f"rounds={config.rounds} must be at least 1": config.rounds >= 1,
        f"eval_every={config.eval_every} must be at least 1 round": config.eval_every >= 1,
        f"seed={config.seed} must not be negative": config.seed >= 0,
        f"checkpoint_every={config.checkpoint_every} is in seconds: 0 or more": config.checkpoint_every >= 0,
        f"federated.clients={federated.clients} must be at least 1": federated.clients >= 1,
        f"federated.cohort={federated.cohort} must be from 1 to federated.clients={federated.clients}: "
        "it is the number of clients that train in a round": 1 <= federated.cohort <= max(federated.clients, 1),
    }
    choices = {"weighting": ("examples", "uniform"), "broken": ("stop", "drop"), "optimizer_state": ("fresh", "kept")}
    choices |= {"regrown": RULES, "control": ("none", "scaffold")}
    wrong = {key: federated[key] for key, known in choices.items() if federated[key] not in known}
    return [problem for problem, fine in rules.items() if not fine] + [
        f"federated.{key}={value}: choose one of {', '.join(choices[key])}" for key, value in wrong.items()
    ]


def evidence(criterion: Criterion, names: dict[str, str]) -> list[str]:
    """Formulas that ask for what nobody can measure. `names`: the chosen option of each group, for the message."""
    asked = {role: unknown(formula, role) for role, formula in criterion.formulas().items()}
    return [
        f"criterion={names['criterion']}: {role} asks for unknown evidence {', '.join(found)}; known: {', '.join(known(role))}"
        for role, found in asked.items()
        if found
    ]


def composition(plan: Plan, criterion: Criterion, where: Any, rewind: Rewind, whose: Whose, names: dict[str, str]) -> list[str]:
    """Combinations of axes that mean nothing, each with what to choose instead."""
    exchanges = any(event.swap for event in plan.events)
    first = min((event.round for event in plan.events), default=plan.rounds)
    back_to = getattr(rewind, "round", 0)
    asked = _asked(criterion)
    on_data = sorted(asked & set(FROM_CLIENTS)) if plan.events else []
    dropping = set(needs(criterion.drop))
    how_often, chosen = f"how_often={names['how_often']}", f"criterion={names['criterion']}"
    rules = {
        f"{how_often} exchanges units, and {chosen} has no formula to grow by: choose criterion=rigl or criterion=set": (
            exchanges and criterion.grow is None
        ),
        f"{how_often} trains on from where it is, and rewind={names['rewind']} would undo that: choose rewind=none": (
            exchanges and names["rewind"] != "none" and not isinstance(whose, Voted)
        ),
        f"{chosen} needs {', '.join(on_data)}, and where={names['where']} has no data: "
        "choose where=cohort, or set where.proxy=500 to give the server a proxy set": (
            bool(on_data) and getattr(where, "proxy", 1) == 0
        ),
        f"rewind.round={back_to} comes after the first prune event, which is after {first} rounds: "
        "choose a smaller rewind.round, or rewind=init": plan.events != () and back_to > first,
        f"{chosen} compares with the weights at the start, and the first prune event is before any training: "
        "choose when=after_training, or when=during_training with a later when.start": "init_params" in asked
        and plan.events != ()
        and first == 0,
        f"{chosen} reads what training learns beside the weights, and the first prune event is before any training: "
        "choose when=after_training, or when=during_training with a later when.start": bool({*CHOOSE} & asked)
        and plan.events != ()
        and first == 0,
        f"{chosen} asks for what clients add up while they train, and the first prune event is before any training: "
        "choose when=after_training, or when=during_training with a later when.start": bool({*FROM_TRAINING} & dropping)
        and plan.events != ()
        and first == 0,
        f"{chosen} asks for what clients add up while they train, and where={names['where']} trains nothing: "
        "choose where=all_clients": bool({*FROM_TRAINING} & asked) and plan.events != () and hasattr(where, "proxy"),
        f"{chosen} compares with the weights at the start, and rewind={names['rewind']} replaces them: choose rewind=init": (
            "init_params" in asked and len(plan.events) > 1 and isinstance(rewind, CONTROLS)
        ),
    }
    return [problem for problem, broken in rules.items() if broken]


def outcomes(plan: Plan, whose: Whose, names: dict[str, str]) -> list[str]:
    """A gate that asks for what no round comes out with."""
    known = OUTCOMES if whose.asks else OUTCOMES_OF_CLIENTS
    asked = [name for name in needs(plan.gate.opens) if name not in OUTCOMES_OF_CLIENTS] if plan.gate else []
    if not asked:
        return []
    return [f"when={names['when']}: the gate asks for unknown outcomes {', '.join(asked)}; known: {', '.join(known)}"]


def outcomes_of_clients(plan: Plan, whose: Whose, names: dict[str, str]) -> list[str]:
    """A gate that asks for what only a client comes out with, where it is the server that asks."""
    if plan.gate is None or not whose.asks or not set(OUTCOMES_OF_CLIENTS).difference(OUTCOMES) & {*needs(plan.gate.opens)}:
        return []
    return [f"when={names['when']} is for clients with masks of their own: choose whose=personal, or when=once_accurate"]


def aggregate(option: Any, work: Any) -> list[str]:
    """An aggregate of bits, where clients send weights."""
    if isinstance(option, BetaMode) and not isinstance(work, SampledMasks):
        return ["federated/aggregate=beta_mode counts bits, and clients send weights: choose federated/client=sampled_masks"]
    return []


def blocks(plan: Plan, what: What, names: dict[str, str]) -> list[str]:
    """Whether layers can take turns."""
    most = max((event.block[1] for event in plan.events if event.block), default=0)
    chosen = f"how_often={names['how_often']}"
    rules = {
        f"{chosen}: how_often.blocks={most} is more than the {len(what.names)} layers that may be pruned: "
        f"choose how_often.blocks={len(what.names)} or less": (most > len(what.names)),
        f"{chosen} exchanges in some layers at a time, and what={names['what']} lets layers compete with each other: "
        "choose what=weights_erk": most > 0 and not is_layerwise(what.scope),
    }
    return [problem for problem, broken in rules.items() if broken]


def of_single_weights(plan: Plan, axes: Axes, whose: Whose, names: dict[str, str]) -> list[str]:
    """Methods that say themselves how many weights of each layer live, where `what` or `how_often` would say otherwise."""
    unit, scope = (getattr(part, "func", part) for part in (axes.what.unit, axes.what.scope))
    single, swaps = unit is weights, [event for event in plan.events if event.swap]
    adjusts = isinstance(axes.criterion, Adjusted) and bool(swaps)
    apportions = isinstance(whose, Voted) and bool(plan.events) and getattr(whose.ballot, "func", None) is by_layer_density
    what, chosen = f"what={names['what']}", f"criterion={names['criterion']}"
    rules = {
        f"{chosen} weighs single weights, and {what} has larger units: choose what=weights_global": adjusts and not single,
        f"{chosen} weighs all layers at once, and how_often={names['how_often']} has blocks: choose how_often=dynamic": (
            adjusts and any(event.block for event in swaps)
        ),
        f"whose={names['whose']} chooses single weights, and {what} has larger units: "
        "choose what=weights_global, or whose=voted": apportions and not single,
        f"whose={names['whose']} takes its densities from the clients, and {what} brings its own: "
        "choose what=weights_global, or whose=voted": apportions and isinstance(scope, OwnDensity),
    }
    return [problem for problem, broken in rules.items() if broken]


def feedback(error_feedback: bool, plan: Plan, whose: Whose, names: dict[str, str]) -> list[str]:
    """Whether what is trained behind a pruned network can come to anything."""
    if not error_feedback or not plan.events or whose.at == "end":
        return []
    return [
        f"local={names['local']}: what error feedback makes of dead weights is only known at the end of a client's round, and "
        f"whose={names['whose']} does not ask then: choose whose=voted with whose.at=end, or local=classification"
    ]


def regrown(rule: str, plan: Plan, whose: Whose, names: dict[str, str]) -> list[str]:
    """Whether what grows can start from where it is to start."""
    if rule == "zero" or whose.at is None or not any(event.swap for event in plan.events):
        return []
    return [
        f"whose={names['whose']}: what grows on a client starts from zero, and federated.regrown={rule} asks the server: "
        "choose federated.regrown=zero, or whose=shared"
    ]


def on_clients(plan: Plan, whose: Whose, axes: Axes, where: Any, rewind: Rewind, names: dict[str, str]) -> list[str]:
    """What clients that carry out events themselves cannot do."""
    if whose.at is None or not plan.events:
        return []
    chosen, early = f"whose={names['whose']}", getattr(rewind, "round", 0)
    asked = needs(plan.gate.opens) if plan.gate and not whose.asks else ()
    rules = {
        f"{chosen}: clients add up gradients for the server's events, and criterion={names['criterion']} asks for them: "
        "choose whose=shared": bool(_asked(axes.criterion) & set(FROM_TRAINING)),
        f"{chosen}: each client scores on its own data, and where={names['where']} measures elsewhere: choose where=cohort": (
            bool(_asked(axes.criterion) & set(FROM_DATA)) and not isinstance(where, Cohort)
        ),
        f"{chosen}: a client knows the weights of the start, and not those of round {early}: choose rewind=init": (
            not whose.asks and early > 0 and not isinstance(rewind, LearningRate)
        ),
        f"{chosen}: the learning rate follows the rounds of all, and rewind={names['rewind']} would set back one client's: "
        "choose rewind=init or rewind=none": not whose.asks and isinstance(rewind, LearningRate),
        f"when={names['when']} compares the masks after the first and the last epoch: choose whose.at=end": (
            "mask_shift" in asked and whose.at == "start"
        ),
    }
    return [problem for problem, broken in rules.items() if broken]


def carried(federated: Any, plan: Plan, whose: Whose, criterion: Criterion, where: Any, names: dict[str, str]) -> list[str]:
    """What clients that carry part of the network cannot do: measure evidence on all of it, or what counts on whole biases."""
    if not isinstance(whose, Nested) or all(part.whole for part in whose.parts):
        return []
    on_data = sorted(_asked(criterion) & set(FROM_DATA)) if plan.events else []
    chosen, upload = f"whose={names['whose']}", federated.upload["_target_"].rpartition(".")[2]
    rules = {
        f"criterion={names['criterion']} needs {', '.join(on_data)} of the whole network, which under {chosen} "
        "not everybody can carry: choose criterion=magnitude, or where=server with where.proxy=500": (
            bool(on_data) and not isinstance(where, Server)
        ),
        f"{chosen}: controls are of whole layers, and by=width cuts them: choose federated.control=none": (
            bool(whose.covers) and federated.control != "none"
        ),
        f"{chosen}: {upload} chooses among weights, and by=width cuts biases too: choose federated/upload=all": (
            bool(whose.covers) and upload != "everything"
        ),
    }
    return [problem for problem, broken in rules.items() if broken]


def of_one_mask(federated: Any, whose: Whose, plan: Plan, names: dict[str, str]) -> list[str]:
    """What goes by the mask that was sent, where clients change it."""
    if whose.at is None or not plan.events:
        return []
    chosen, upload = f"whose={names['whose']}", federated.upload["_target_"].rpartition(".")[2]
    rules = {
        f"{chosen}: controls are of the weights that were sent, and clients prune: choose federated.control=none": (
            federated.control != "none"
        ),
        f"{chosen}: {upload} is by the mask that was sent, and clients prune: choose federated/upload=all": (
            upload != "everything"
        ),
    }
    return [problem for problem, broken in rules.items() if broken]


def validation(plan: Plan, examples: int, names: dict[str, str]) -> list[str]:
    """Whether a gate looks at validation data that nobody has. examples: how many of them there are."""
    if examples or plan.gate is None or "val_accuracy" not in needs(plan.gate.opens):
        return []
    return [
        f"when={names['when']} looks at the clients' validation data, and partition.val=0 leaves none: set partition.val=0.1, "
        "or choose when=once_settled"
    ]


def answers(
    fates: Fates, config: Any, plan: Plan, criterion: Criterion, where: Any, whose: Whose, names: dict[str, str]
) -> list[str]:
    """Whether those who are asked to train, or to measure evidence, include somebody who answers in any round."""
    federated, seed = config.federated, config.seed

    def trains(clock: int) -> tuple[int, ...]:
        return cohort(seed, clock, federated.clients, federated.cohort)

    def measures(clock: int) -> tuple[int, ...]:
        return where(trains(clock), federated.clients, seed)

    if not heard(fates, trains, plan.rounds):
        return [
            f"federated.availability leaves nobody in any of the {plan.rounds} rounds: choose federated/availability=always, "
            "or let more clients answer"
        ]
    asks = whose.asks and bool(plan.events) and bool(_asked(criterion) & set(FROM_DATA)) and measures(0) != (SERVER,)
    if not asks or heard(fates, measures, plan.rounds):
        return []
    return [
        f"where={names['where']}: under federated.availability nobody ever answers who is to measure evidence: "
        "choose where=cohort, or another seed"
    ]


def kept_back(own: tuple[str, ...], rewind: Rewind, plan: Plan, names: dict[str, str]) -> list[str]:
    """Whether a rewind would have to take back what clients keep to themselves. own: the names of those tensors."""
    if not (own and plan.events and rewind.anchor):
        return []
    return [
        f"rewind={names['rewind']}: federated.batchnorm=local leaves BatchNorm with the clients, and nobody has it as of round "
        f"{rewind.anchor}: choose rewind=init or federated.batchnorm=average"
    ]


def obstacles(
    plan: Plan, criterion: Criterion, network: Network, prunable: tuple[str, ...], names: dict[str, str]
) -> list[str]:
    """Evidence that this network cannot give about its prunable tensors, each with what to choose instead."""
    asked = sorted(_asked(criterion) & OBSTACLES.keys()) if plan.events else []
    found = (OBSTACLES[name](network, prunable) for name in asked)
    return [f"criterion={names['criterion']}: {problem}" for problem in found if problem is not None]


def _asked(criterion: Criterion) -> set[str]:
    return {name for formula in criterion.formulas().values() for name in needs(formula)}


def whole_units(mask: Mask, what: What, plan: Plan, names: dict[str, str]) -> list[str]:
    """Whether the mask that a run starts from can be pruned on: it has to be of whole units."""
    if not plan.events:
        return []
    return broken_units(mask, what, names, f"how_often={names['how_often']} prunes by units")


def min_per_layer(what: What, plan: Plan, units: dict[str, int]) -> list[str]:
    """Whether every event can leave `min_per_layer` units in each layer. units: the number of units of each layer."""
    if what.emerges:
        return []
    needed = sum(min(what.min_per_layer, number) for number in units.values())
    lowest = min((event.density * (1 - event.swap) for event in plan.events), default=1.0)
    kept = nearest(lowest * sum(units.values()))
    if kept >= needed:
        return []
    return [
        f"what.min_per_layer={what.min_per_layer} keeps {needed} units, and a density of {lowest:.4g} only {kept}: lower one"
    ]


def scope(what: What, plan: Plan, units: dict[str, int], names: dict[str, str]) -> list[str]:
    """What a scope with densities of its own cannot keep of a plan. units: the number of units of each layer."""
    if not isinstance(what.scope, OwnDensity):
        return []
    return [f"what={names['what']}: {problem}" for problem in what.scope.problems(plan, units)]
