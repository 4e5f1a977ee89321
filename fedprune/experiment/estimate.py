"""Estimate what a run costs before it trains: parameters, rounds, bytes and operations. Bytes are lengths of real encodings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from omegaconf import DictConfig

from fedprune.amount import amount
from fedprune.data.population import sizes
from fedprune.experiment.experiment import Experiment
from fedprune.federated.availability import Fate
from fedprune.federated.metrics.costs import training_flops
from fedprune.federated.sampling import cohort
from fedprune.federated.server import scaffold
from fedprune.federated.where import asked
from fedprune.pruning.evidence import FROM_CLIENTS, needs
from fedprune.pruning.evidence.batchnorm import LOSS, STATISTICS
from fedprune.pruning.evidence.gates import is_companion
from fedprune.pruning.mask import apply, ones, shrink
from fedprune.tensors import tensors_of
from fedprune.types import SERVER, Job, Mask, State, Subnet, Update
from fedprune.wire.frame import length
from fedprune.wire.message import about, answered_under

SAMPLED = 2000  # rounds whose cohorts are drawn for an estimate: in the first ones of a long run nearly all clients meet


def estimate(experiment: Experiment, config: DictConfig) -> list[tuple[str, str]]:
    """Return (name, value) rows. Training bytes and operations follow the plan's densities; evidence is counted for each event.

    Under a gate, as if each event came at its earliest: what it waits costs more.
    """
    plan, net, answering = experiment.plan, experiment.net, _answering(experiment, config)
    down = up = flops = 0.0
    subnets = _subnets(experiment)
    for rounds, subnet in _stretches(experiment, subnets):
        for share, part, known in _parts(experiment, subnet):
            each = _message_bytes(experiment, part, known)
            sent, received = experiment.options.round.traffic(experiment.wire, part, each, config.federated.cohort)
            down += rounds * share * sent
            up += rounds * share * answering * received
            trained = rounds * share * answering * _examples(experiment, config)
            flops += trained * training_flops(experiment.flops, part.mask)
    sent, received, alone = _initial_pruning(experiment, config, subnets)
    down, up, flops = down + sent, up + received, flops + alone
    once = _newcomers(experiment, config) * _untrained_bytes(experiment)
    down += once
    prunable = sum(net.get_parameter(name).numel() for name in experiment.axes.what.names)
    parameters = sum(p.numel() for name, p in net.named_parameters() if not is_companion(name))
    missing = [("answers", f"{100 * answering:.3g} % of those that are sent for training; of evidence, all are counted")]
    kept = [("frozen", f"{amount(once)} of the bytes down: what nobody trains goes once to each client")] if once else []
    tuned = _tuned(experiment, config, flops / plan.rounds)
    gate = [("gate", f"{plan.gate.opens}; the costs are those of events at their earliest")] if plan.gate else []
    return [
        ("parameters", f"{parameters:,} ({prunable:,} prunable)"),
        ("rounds", f"{plan.rounds:,}, of {config.federated.cohort} clients each"),
        ("bytes down", f"{amount(down)} for training"),
        ("bytes up", f"{amount(up)} for training"),
        ("bytes of evidence", amount(_evidence_bytes(experiment, config, subnets))),
        ("operations", _operations(flops, experiment.flops)),
        *kept,
        *([("tuned evaluation", tuned)] if tuned else []),
        *(missing if answering < 1 else []),
        *gate,
    ]


def _initial_pruning(experiment: Experiment, config: DictConfig, subnets: list[Subnet]) -> tuple[int, int, float]:
    """Return (bytes down, bytes up, operations) of one client that prunes before all others: at most, as if it stayed dense."""
    initial = experiment.plan.events[0].initial if experiment.plan.events else None
    if initial is None:
        return 0, 0, 0.0
    down, up = (_message_bytes(experiment, subnet, None)[way] for way, subnet in enumerate(subnets[:2]))
    examples = initial.rounds * _examples(experiment, config) / config.federated.cohort
    return down, up, examples * training_flops(experiment.flops, subnets[0].mask)


def _operations(total: float, per_example: Mapping[str, float]) -> str:
    if not per_example:
        return "cannot be counted for this network, see the warning above"
    return f"{amount(total, 'FLOP')} of training, {amount(sum(per_example.values()), 'FLOP')} an example when dense"


def _tuned(experiment: Experiment, config: DictConfig, round_flops: float) -> str:
    """Return what evaluating clients after one local training costs; "" if it is not done. round_flops: a round's."""
    number, rounds = len(experiment.tuned.clients), experiment.plan.rounds
    if not number:
        return ""
    times = 1 if experiment.tuned.only else -(-rounds // config.eval_every)
    of_each = round_flops * number / config.federated.cohort
    amounts = f", {amount(times * of_each, 'FLOP')}" if experiment.flops else ""
    return f"{number} clients train once more at each of {times:,} evaluations{amounts}; federated.tuned=0 turns it off"


def _untrained_bytes(experiment: Experiment) -> int:
    """Return how many bytes longer a newcomer's job is."""
    wire, params = experiment.wire, tensors_of(experiment.net)
    if not wire.untrained.shapes:
        return 0
    job, block = Job(0, 0, 0, 0, Subnet(params, {})), b""
    return length(wire.encode_job(job, block, wire.untrained_block(params))) - length(wire.encode_job(job, block))


def _newcomers(experiment: Experiment, config: DictConfig) -> int:
    """Return how many jobs go to clients that have not answered yet, in the rounds of the plan."""
    fates, reached, number = experiment.options.fates, set[int](), 0
    first = {event.round for event in experiment.plan.events}
    for clock in range(min(experiment.plan.rounds, SAMPLED)) if experiment.options.round.welcomes else ():
        training = _cohort(experiment, clock)
        measuring = _measuring(experiment, config, training) if clock in first else ()
        for clients in (measuring, training):
            number += len([client for client in clients if client not in reached])
            reached |= {client for client in clients if fates(client, clock) is Fate.ANSWERS}
    return number


def _measuring(experiment: Experiment, config: DictConfig, training: tuple[int, ...]) -> tuple[int, ...]:
    """Return the clients that measure evidence for the server's events."""
    formulas = experiment.axes.criterion.formulas().values()
    measured = experiment.axes.criterion.selects or any(name in FROM_CLIENTS for f in formulas for name in needs(f))
    if experiment.options.whose.at is not None or not measured:
        return ()
    measuring = asked(experiment.options.where, training, *_population(experiment))
    return () if measuring == (SERVER,) else measuring


def _population(experiment: Experiment) -> tuple[int, int, tuple[int, ...]]:
    """Return (number of clients, seed, those that are in no cohort)."""
    return experiment.config.federated.clients, experiment.config.seed, experiment.clients.unseen


def _cohort(experiment: Experiment, clock: int) -> tuple[int, ...]:
    clients, seed, unseen = _population(experiment)
    return cohort(seed, clock, clients, experiment.config.federated.cohort, unseen)


def _masks(experiment: Experiment) -> list[Mask]:
    """Return a mask of the density before the first event, one of the density after it, and so on.

    By the initial magnitudes: where densities only emerge, that is the best guess there is, and within a layer they are random.
    A trained network's mask has patterns, and takes fewer bytes than such a one if it is entropy-coded.
    """
    params, what = tensors_of(experiment.net), experiment.axes.what
    scores = {name: params[name].abs() for name in what.names}
    full = experiment.ticket.mask if experiment.ticket else ones(params, what.names)
    return [full, *(shrink(full, scores, event.density, what) for event in experiment.plan.events)]


def _subnets(experiment: Experiment) -> list[Subnet]:
    params = tensors_of(experiment.net)
    return [Subnet(apply(params, mask), mask) for mask in _masks(experiment)]


def _stretches(experiment: Experiment, subnets: list[Subnet]) -> list[tuple[int, Subnet]]:
    """Return (rounds of training, the network then) between the plan's events."""
    ends = [*(event.round for event in experiment.plan.events), experiment.plan.rounds]
    starts = [0, *ends[:-1]]
    return [(stop - start, subnet) for start, stop, subnet in zip(starts, ends, subnets, strict=True) if stop > start]


def _parts(experiment: Experiment, subnet: Subnet) -> list[tuple[float, Subnet, Mask | None]]:
    """(fraction of the clients, what they have of the server's network, the mask that they know) for each kind of client."""
    whose, state, wire = experiment.options.whose, State(subnet, {}, {}), experiment.wire
    clients = len(experiment.clients.train)
    kinds = Counter((whose.client_mask(state, client), whose.kept_mask(state, client)) for client in range(clients))
    masks = {held: wire.mask_of(held) for held, _ in kinds}
    parts = {held: subnet if mask is None else Subnet(apply(subnet.params, mask), mask) for held, mask in masks.items()}
    return [(number / clients, parts[held], wire.mask_of(known)) for (held, known), number in kinds.items()]


def _message_bytes(experiment: Experiment, subnet: Subnet, known: Mask | None) -> tuple[int, int]:
    """Return (bytes of a job, bytes of its update) for training this subnet. known: the mask that its client holds, if any."""
    wire = experiment.wire
    control = scaffold.sent(experiment.controlled, State(subnet, {}, {}))
    job = wire.encode_job(Job(0, 0, 0, 0, subnet, control=control), wire.subnet_block(subnet, known))
    nothing = {name: torch.zeros_like(tensor) for name, tensor in subnet.params.items()}  # else no change is the greatest
    travels = experiment.options.upload.pack(nothing, experiment.options.client.sent_back(subnet))
    update = Update(0, travels, 0, metrics={"loss": 0.5, "steps": 1, "seen": 1}, control=control)
    answer = wire.encode_update(update, subnet.mask)
    return length(job), length(answer)


def _answering(experiment: Experiment, config: DictConfig) -> float:
    """Return the fraction that answers of the clients that are asked to train."""
    fates = experiment.options.fates
    cohorts = [_cohort(experiment, clock) for clock in range(min(experiment.plan.rounds, SAMPLED))]
    found = [fates(client, clock) is Fate.ANSWERS for clock, clients in enumerate(cohorts) for client in clients]
    return sum(found) / len(found)


def _examples(experiment: Experiment, config: DictConfig) -> float:
    """Return on how many examples a cohort trains in a round, on average."""
    local, trained = config.local, [experiment.recipe.examples_of_a_pass(number) for number in sizes(experiment.clients.train)]
    per_client = local.steps * local.batch_size if local.steps else local.epochs * sum(trained) / len(trained)
    return float(config.federated.cohort * per_client)


def _evidence_bytes(experiment: Experiment, config: DictConfig, subnets: list[Subnet]) -> int:
    """Return the bytes up and down of measuring evidence on clients: the network to each, what they measured back, at each
    event."""
    criterion = experiment.axes.criterion
    if experiment.options.whose.at is not None:  # each client scores for itself
        return 0
    clients = asked(experiment.options.where, _cohort(experiment, 0), *_population(experiment))
    if clients == (SERVER,):
        return 0
    gate, total = experiment.plan.gate, 0
    times = 1 + (gate.opens.asks if gate and "mask_shift" in needs(gate.opens) else 0)
    for event, subnet, after in zip(experiment.plan.events, subnets, subnets[1:], strict=False):
        total += times * len(clients) * _evidence_message_bytes(experiment, subnet, criterion.drop, "alive")
        if criterion.selects and not event.swap:
            total += len(clients) * criterion.candidates * _candidate_bytes(experiment, after)
        if criterion.compensate is not None:
            total += len(clients) * _evidence_message_bytes(experiment, subnet, criterion.compensate, "alive", after.mask)
        if event.swap and criterion.grow:
            which = "all" if criterion.adjusts else "dead"
            total += len(clients) * _evidence_message_bytes(experiment, subnet, criterion.grow, which)
    return total


def _evidence_message_bytes(
    experiment: Experiment, subnet: Subnet, formula: Callable[..., object], which: str, surviving: Mask | None = None
) -> int:
    wire, wanted = experiment.wire, tuple(name for name in needs(formula) if name in FROM_CLIENTS)
    if not wanted:
        return 0
    job = Job(0, 0, 0, 0, subnet, wanted, which, surviving)
    known = answered_under(job)
    values = {name: alive.float() for name, alive in about(known, which).items()}
    answer = wire.encode_update(Update(0, None, 0, dict.fromkeys(wanted, values), which), known)
    return length(wire.encode_job(job, wire.subnet_block(subnet))) + length(answer)


def _candidate_bytes(experiment: Experiment, candidate: Subnet) -> int:
    """Return the bytes up and down of what one client does with one candidate mask (federated/where.py: comparing)."""
    wire, asked = experiment.wire, Job(0, 0, 0, 0, candidate)
    loss = Update(0, None, 0, {LOSS: {"loss": torch.tensor(0.0)}})
    answers, jobs = [loss], [(replace(asked, measure=(LOSS,)), candidate)]
    if experiment.axes.criterion.adapt:
        statistics = {name: candidate.params[name].float() for name in wire.statistics}
        nothing = {name: torch.zeros_like(alive) for name, alive in candidate.mask.items()}
        others = Subnet(apply(candidate.params, nothing), nothing)
        answers.append(Update(0, None, 0, {STATISTICS: statistics}))
        jobs = [(replace(asked, measure=(STATISTICS,)), candidate), (replace(asked, measure=(LOSS,), common=nothing), others)]
    down = sum(length(wire.encode_job(job, wire.subnet_block(subnet))) for job, subnet in jobs)
    return down + sum(length(wire.encode_update(answer, candidate.mask)) for answer in answers)
