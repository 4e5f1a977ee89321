"""FedPM: weights are constants that nobody trains or sends; clients learn with what probability each is there, and answer with
one sampled bit for each. Isik et al. 2023, "Sparse random networks for communication-efficient federated learning".

An option of federated/client. Down go the scores (the log odds of the probabilities) in float32, up go bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fedprune.data.batches import Slice
from fedprune.errors import ConfigError, Incompatible
from fedprune.execution.arrays import Arrays
from fedprune.federated.client import Work, broken
from fedprune.federated.client.round import Answer, ClientRound
from fedprune.federated.client.state_arrays import KeptArrays
from fedprune.local.outcomes import Outcomes, averaged
from fedprune.local.regularisers.base import Regulariser
from fedprune.local.regularisers.check import changed_layers
from fedprune.local.regularisers.sampled_masks import GRADIENTS, sampled
from fedprune.local.train import Trained, is_batchnorm
from fedprune.pruning.evidence.gates import companion, companion_of
from fedprune.pruning.evidence.network import offers
from fedprune.pruning.mask import ones
from fedprune.pruning.what.layers import others
from fedprune.randomness import torch_stream
from fedprune.tensors import tied_parameter
from fedprune.types import Job, Params, Subnet, Update
from fedprune.wire.codec import Codec, Layout, bits
from fedprune.wire.frame import Message, Piece
from fedprune.wire.message import Wire

if TYPE_CHECKING:
    from fedprune.federated.composition import Composition

CHOSEN = "federated/client=sampled_masks"


@dataclass(frozen=True)
class SampledMasks(Work):
    """Clients learn scores, and send samples.

    gradient: the stand-in for the derivative of a sample, see local/regularisers/sampled_masks.py. gain: weights are
    +-gain sqrt(1 / fan_in). masks: the number of samples that an evaluation is the mean of.

    Biases are zero and stay (in the paper they are constants with probabilities of their own). The paper's normalisation has no
    parameters; here its scales and shifts stay as they begin.
    """

    gradient: str = "straight_through"
    gain: float = math.e
    masks: int = 3
    sends = "bits"
    tunes = True

    def __post_init__(self) -> None:
        rules = {
            f"federated.client.gradient={self.gradient}: choose one of {', '.join(GRADIENTS)}": self.gradient in GRADIENTS,
            f"federated.client.gain={self.gain} scales all weights: more than 0": self.gain > 0,
            f"federated.client.masks={self.masks} must be at least 1": self.masks >= 1,
        }
        if broken(rules):
            raise ConfigError(broken(rules))

    @property
    def regularisers(self) -> tuple[Regulariser, ...]:
        return (sampled(GRADIENTS[self.gradient]),)

    @torch.no_grad()
    def prepare(self, net: nn.Module, names: tuple[str, ...]) -> None:
        """Constants with the signs of the weights that were drawn, and zero biases. Raises Incompatible on other layers."""
        if others(net, names):
            told = ", ".join(f"{name} ({type(layer).__name__})" for name, layer in others(net, names).items())
            raise Incompatible(f"{CHOSEN} samples conv and linear layers, and not {told}: choose what.layers=[conv,linear]")
        unknown = changed_layers(net, names, self.regularisers[0])
        if unknown:
            raise Incompatible(
                f"{CHOSEN} runs layers by the formula of their class, and {', '.join(unknown)} has a forward or a hook of its "
                f"own: choose what.skip=[{','.join(unknown)}], or federated/client=trained_weights"
            )
        if tied := tied_parameter(net, names):
            raise Incompatible(f"{CHOSEN} samples each layer by itself, and {tied}: choose federated/client=trained_weights")
        for name in names:
            layer = net.get_submodule(name.rpartition(".")[0])
            weight, bias = net.get_parameter(name), cast(Tensor | None, layer.bias)
            constant = self.gain / math.sqrt(weight[0].numel())
            weight.copy_(torch.where(weight < 0, -constant, constant))
            if bias is not None:
                bias.zero_()

    def wire(self, codec: Codec, tensors: Params, names: tuple[str, ...]) -> Wire:
        scores = {companion(name, "score"): tensors[companion(name, "score")] for name in names}
        return Wire(codec, Layout.of(scores, ()), answers=bits)

    def sent_back(self, subnet: Subnet) -> Subnet:
        return Subnet({name: torch.zeros_like(tensor) for name, tensor in subnet.params.items()}, {})

    def client_round(self, worker: ClientRound, start: Callable[[], Params], seed: int) -> SamplingRound:
        return SamplingRound(worker, start, seed, self.masks)

    def problems(self, composition: Composition) -> list[str]:
        """Refuse what prunes, trains or merges weights: here they are constants, and only scores and bits travel."""
        plan, options, names, config = composition.plan, composition.options, composition.names, composition.config
        federated, net = config.federated, composition.net
        rules = {
            f"how_often={names['how_often']} prunes, and {CHOSEN} has another mask for every batch: choose how_often=never": (
                not plan.events and plan.gate is None
            ),
            f"rewind={names['rewind']}: {CHOSEN} never changes weights: choose rewind=none": not options.rewind.goes_back,
            f"whose={names['whose']}: {CHOSEN} has probabilities that all share: choose whose=shared": (
                not options.whose.per_client
            ),
            f"what={names['what']}: {CHOSEN} samples single weights: choose what=weights_global": composition.what.kind.single,
            f"{CHOSEN} sends bits, and not weights: choose federated/aggregate=beta_mode": options.aggregate.takes == "bits",
            f"{CHOSEN}: probabilities are not moved by steps: choose federated=fedavg": not options.server_step.moves,
            f"federated.weighting={federated.weighting}: {CHOSEN} counts bits: set federated.weighting=uniform": (
                federated.weighting == "uniform"
            ),
            f"{CHOSEN} sends bits, all of them: choose federated/upload=all": options.upload.whole,
            f"federated.control={federated.control}: {CHOSEN} trains no weights to correct: set federated.control=none": (
                federated.control == "none"
            ),
            f"federated.optimizer_state={federated.optimizer_state}: {CHOSEN} begins each round from other scores: "
            "set federated.optimizer_state=fresh": federated.optimizer_state == "fresh",
            f"local/penalty and local/dropout act on weights, which {CHOSEN} does not train: "
            "set local/penalty=none and local/dropout=none": not options.penalty.acts and not options.dropout.acts,
            f"ticket.path={config.ticket.path}: {CHOSEN} begins from constants: set ticket.path=null": (
                config.ticket.path is None
            ),
            f"init_from.path={config.init_from.path}: {CHOSEN} begins from constants: set init_from.path=null": (
                config.init_from.path is None
            ),
            f"model={names['model']} has BatchNorm, which {CHOSEN} does not train: "
            f"choose {'model.norm=group' if offers(net, 'group') else 'model=lenet_300_100'}, or another model without it": (
                not any(is_batchnorm(layer) for layer in net.modules())
            ),
        }
        return broken(rules)


@dataclass(frozen=True)
class SamplingRound:
    """A client's round. start: the constant weights, which follow from the seed and are not sent. seed: of the run."""

    inner: ClientRound
    start: Callable[[], Params]
    seed: int
    masks: int

    def __post_init__(self) -> None:
        for name, parameter in self.inner.context.module.net.named_parameters():
            parameter.requires_grad_(companion_of(name) == "score")

    def run(self, message: Message, kept: KeptArrays, kept_mask: bytes) -> Answer:
        """Perform the job of a message, and return its update."""
        return self.inner.run(message, kept, kept_mask, self.train)

    def train(self, job: Job) -> Update:
        """Train the scores that were sent, and answer with a sample of each weight's probability."""
        trained, scores = self._trained(job)
        sample = drawn(scores, lambda name: torch_stream(job.seed, f"sampled mask {name}", job.round, job.client))
        metrics = {"loss": trained.loss, "steps": trained.steps, "seen": trained.examples}
        examples = len(self.inner.context.clients.train[job.client])
        return Update(job.client, Subnet(sample, {}), examples, metrics=metrics, logged=trained.logged)

    def evaluate(self, block: Piece, private: Arrays, kept_mask: bytes, where: Slice) -> Outcomes:
        """Return what the module measures on a slice, the mean over the same few samples.

        They come from the same uniform draws in every round, so that evaluations differ by the probabilities alone.
        """
        scores = self.inner.context.wire.read_subnet(block).params
        outcomes = self.inner.evaluation.outcomes
        return averaged([outcomes(self._sample(scores, number), where) for number in range(self.masks)])

    def tuned(self, message: Message, kept: KeptArrays, kept_mask: bytes) -> Outcomes:
        """Return what the module measures after the training of a job; see ClientRound."""
        return self.inner.tuned(message, kept, kept_mask, self.tune)

    def tune(self, job: Job) -> Outcomes:
        """Train the scores that were sent, and evaluate the same few samples of them as `evaluate` does."""
        _, scores = self._trained(job)
        own_test = self.inner.evaluation.own_test
        return averaged([own_test(job.client, self._sample(scores, number)) for number in range(self.masks)])

    def _trained(self, job: Job) -> tuple[Trained, Params]:
        """Return (the outcome of training the scores that were sent, the scores)."""
        subnet = Subnet(self._constants | job.subnet.params, ones(self._constants, self._names))
        trained, _ = self.inner.training.train_subnet(job, subnet, {}, {})
        return trained, {name: trained.params[name] for name in self.inner.context.wire.layout.shapes}

    def _sample(self, scores: Params, number: int) -> Params:
        """Return the number-th sampled network."""
        sample = drawn(scores, lambda name: torch_stream(self.seed, f"evaluated mask {name}", number))
        there = {name: sample[companion(name, "score")] for name in self._names}
        return self._constants | scores | {name: self._constants[name] * there[name] for name in self._names}

    @functools.cached_property
    def _constants(self) -> Params:
        return self.start()

    @functools.cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(name.removesuffix("_score") for name in self.inner.context.wire.layout.shapes)


def drawn(scores: Params, generator: Callable[[str], torch.Generator]) -> Params:
    """Return for each entry 1 with probability sigmoid(score), else 0. generator: of each tensor, by its name."""
    return {
        name: (torch.rand(score.shape, generator=generator(name)) < score.sigmoid()).to(score) for name, score in scores.items()
    }
