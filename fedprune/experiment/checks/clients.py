"""Checks of what clients do: carry out events, answer, keep tensors private. Each problem says what to choose instead."""

from __future__ import annotations

from omegaconf import DictConfig

from fedprune.experiment.checks.axes import evidence_of
from fedprune.experiment.checks.problems import Names
from fedprune.federated.availability import Fates, heard
from fedprune.federated.client.upload import Upload
from fedprune.federated.composition import Composition
from fedprune.federated.masks.whose import Whose
from fedprune.federated.sampling import cohort
from fedprune.federated.server_pruning.initial_pruning import chosen_client
from fedprune.federated.where import Where, asked
from fedprune.pruning.criterion import Criterion
from fedprune.pruning.event import Axes
from fedprune.pruning.evidence import (
    FROM_CLIENTS,
    FROM_DATA,
    FROM_TRAINING,
    OUTCOMES,
    OUTCOMES_OF_CLIENTS,
    needs,
)
from fedprune.pruning.rewind import Rewind
from fedprune.types import SERVER, Plan


def outcomes_of_clients(plan: Plan, whose: Whose, names: Names) -> list[str]:
    """Return a problem if the server's gate asks for an outcome that only clients have, else nothing."""
    if (
        plan.gate is None
        or not whose.global_mask
        or not set(OUTCOMES_OF_CLIENTS).difference(OUTCOMES) & {*needs(plan.gate.opens)}
    ):
        return []
    return [f"when={names['when']} is for clients with masks of their own: choose whose=personal, or when=once_accurate"]


def on_clients(plan: Plan, whose: Whose, axes: Axes, where: Where, rewind: Rewind, names: Names) -> list[str]:
    """Return what clients cannot do that carry out events themselves."""
    if whose.at is None or not plan.events:
        return []
    chosen, early = f"whose={names['whose']}", rewind.anchor or 0
    asked = needs(plan.gate.opens) if plan.gate and not whose.global_mask else ()
    rules = {
        f"{chosen}: clients add up gradients for the server's events, and criterion={names['criterion']} asks for them: "
        "choose whose=shared": bool(evidence_of(axes.criterion) & set(FROM_TRAINING)),
        f"{chosen}: each client scores on its own data, and where={names['where']} measures elsewhere: choose where=cohort": (
            bool(evidence_of(axes.criterion) & set(FROM_DATA)) and not where.in_cohort
        ),
        f"{chosen}: a client knows the weights of the start, and not those of round {early}: choose rewind=init": (
            not whose.global_mask and early > 0
        ),
        f"{chosen}: the learning rate follows the rounds of all, and rewind={names['rewind']} would set back one client's: "
        "choose rewind=init or rewind=none": not whose.global_mask and rewind.goes_back and not rewind.replaces_weights,
        f"when={names['when']} compares the masks after the first and the last epoch: choose whose.at=end": (
            "mask_shift" in asked and whose.at == "start"
        ),
    }
    return [problem for problem, broken in rules.items() if broken]


def regrown(rule: str, plan: Plan, whose: Whose, names: Names) -> list[str]:
    """Return a problem if regrown weights cannot start from the values that `rule` names, else nothing."""
    if rule == "zero" or whose.at is None or not any(event.swap for event in plan.events):
        return []
    return [
        f"whose={names['whose']}: what grows on a client starts from zero, and federated.regrown={rule} asks the server: "
        "choose federated.regrown=zero, or whose=shared"
    ]


def feedback(error_feedback: bool, plan: Plan, whose: Whose, names: Names) -> list[str]:
    """Return a problem if error feedback has no effect, because no event follows a client's training; else nothing."""
    if not error_feedback or not plan.events or whose.at == "end":
        return []
    return [
        f"local={names['local']}: what error feedback makes of dead weights is only known at the end of a client's round, and "
        f"whose={names['whose']} does not ask then: choose whose=voted with whose.at=end, or local=classification"
    ]


def of_one_mask(federated: DictConfig, whose: Whose, upload: Upload, plan: Plan, names: Names) -> list[str]:
    """Return the options that rely on the mask that was sent, where clients change it."""
    if whose.at is None or not plan.events:
        return []
    chosen, name = f"whose={names['whose']}", federated.upload["_target_"].rpartition(".")[2]
    rules = {
        f"{chosen}: controls are of the weights that were sent, and clients prune: choose federated.control=none": (
            federated.control != "none"
        ),
        f"{chosen}: {name} is by the mask that was sent, and clients prune: choose federated/upload=all": (not upload.whole),
    }
    return [problem for problem, broken in rules.items() if broken]


def validation(plan: Plan, examples: int, names: Names) -> list[str]:
    """Return a problem if a gate needs validation examples and there are none, else nothing. examples: their number."""
    if examples or plan.gate is None or not {"val_accuracy", "val_metric"} & {*needs(plan.gate.opens)}:
        return []
    return [
        f"when={names['when']} looks at the clients' validation data, and partition.val=0 leaves none: set partition.val=0.1, "
        "or choose when=once_settled"
    ]


def answers(
    fates: Fates,
    config: DictConfig,
    plan: Plan,
    criterion: Criterion,
    where: Where,
    whose: Whose,
    names: Names,
    unseen: tuple[int, ...] = (),
) -> list[str]:
    """Return a problem if no client that is asked to train, or to measure evidence, ever answers; else nothing. unseen: those
    that are never asked."""
    federated, seed = config.federated, config.seed

    def trains(clock: int) -> tuple[int, ...]:
        return cohort(seed, clock, federated.clients, federated.cohort, unseen)

    def measures(clock: int) -> tuple[int, ...]:
        return asked(where, trains(clock), federated.clients, seed, unseen)

    if not heard(fates, trains, plan.rounds):
        return [
            f"federated.availability leaves nobody in any of the {plan.rounds} rounds: choose federated/availability=always, "
            "or let more clients answer"
        ]
    measured = (
        whose.global_mask
        and bool(plan.events)
        and (criterion.selects or bool(evidence_of(criterion) & set(FROM_CLIENTS)))
        and measures(0) != (SERVER,)
    )
    if not measured or heard(fates, measures, plan.rounds):
        return []
    return [
        f"where={names['where']}: under federated.availability nobody ever answers who is to measure evidence: "
        "choose where=cohort, or federated/availability=always"
    ]


def kept_back(own: tuple[str, ...], rewind: Rewind, plan: Plan, names: Names) -> list[str]:
    """Return the problem of a rewind of tensors that clients keep to themselves. own: the names of those tensors."""
    if not (own and plan.events and rewind.anchor):
        return []
    return [
        f"rewind={names['rewind']}: federated.batchnorm=local leaves BatchNorm with the clients, and nobody has it as of round "
        f"{rewind.anchor}: choose rewind=init or federated.batchnorm=average"
    ]


def alone(composed: Composition, unseen: tuple[int, ...]) -> list[str]:
    """Return what stands against one client pruning for all others before the first round. unseen: those never asked."""
    options, names, config = composed.options, composed.names, composed.config
    first = composed.plan.events[0].initial if composed.plan.events else None
    if first is None:
        return []
    client = chosen_client(config.seed, config.federated.clients, unseen)
    given = f"how_often.alone={first.rounds}: one client prunes for all"
    rules = {
        f"{given}, and whose={names['whose']} gives clients masks of their own: choose whose=shared or how_often.alone=0": (
            not options.whose.global_mask or options.whose.masks_always
        ),
        f"{given}, and sends its whole network: choose federated/upload=all or how_often.alone=0": not options.upload.whole,
        f"{given}, and trains weights: choose federated/client=trained_weights or how_often.alone=0": (
            options.client.sends != "weights"
        ),
        f"{given}, and under federated.availability client {client} never answers: choose federated/availability=always or "
        "how_often.alone=0": not heard(options.fates, lambda clock: (client,), composed.plan.rounds),
    }
    return [problem for problem, broken in rules.items() if broken]
