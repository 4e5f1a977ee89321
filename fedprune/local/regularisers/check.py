"""Checks before a run: whether a network can be trained with a penalty and a dropout, and with the two of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from fedprune.errors import ConfigError, Incompatible
from fedprune.local.regularisers.base import Regulariser, scales
from fedprune.plain_layers import is_plain
from fedprune.pruning.evidence import needs
from fedprune.pruning.what.layers import CHANNELLED, LAYERS, kind_of, others
from fedprune.tensors import tied_parameter


def check_together(penalty: Regulariser, dropout: Regulariser, net: nn.Module, names: Sequence[str]) -> None:
    """Raise Incompatible if these two do not go together, or not with this network. names: of its prunable weights."""
    chosen = {"local.penalty": penalty, "local.dropout": dropout}
    problems = [problem for option in chosen.values() if option.obstacle and (problem := option.obstacle(net))]
    problems += _layers_without_noise(net, names, chosen)
    for key, option in chosen.items():
        problems += _changed_layers(net, names, key, option)
    problems += _shared_weights(net, names, chosen)
    problems += _two_noises(penalty, dropout) + _without_scales(net, penalty)
    if problems:
        raise Incompatible(*problems)


def _layers_without_noise(net: nn.Module, names: Sequence[str], chosen: Mapping[str, Regulariser]) -> list[str]:
    keys, without = [key for key, option in chosen.items() if option.layers], others(net, names)
    if not keys or not without:
        return []
    named = ", ".join(f"{name} ({type(layer).__name__})" for name, layer in without.items())
    return [
        f"{' and '.join(keys)} brings noise into conv and linear layers, and {named} may be pruned without: "
        "choose what.layers=[conv,linear], or local/penalty=l1 and local/dropout=none"
    ]


def _changed_layers(net: nn.Module, names: Sequence[str], key: str, option: Regulariser) -> list[str]:
    changed = ",".join(changed_layers(net, names, option))
    if not changed:
        return []
    return [
        f"{key} runs layers by the formula of their class, and {changed.replace(',', ', ')} has a forward or a hook of its "
        f"own: choose what.skip=[{changed}], or {key.replace('.', '/')}=none"
    ]


def _shared_weights(net: nn.Module, names: Sequence[str], chosen: Mapping[str, Regulariser]) -> list[str]:
    keys, tied = [key for key, option in chosen.items() if option.layers or option.paired], tied_parameter(net, names)
    if not tied or not keys:
        return []
    return [f"{keys[0]} changes how one layer runs, and {tied}: choose {keys[0].replace('.', '/')}=none"]


def _two_noises(penalty: Regulariser, dropout: Regulariser) -> list[str]:
    if not penalty.layers or not (dropout.layers or dropout.paired):
        return []
    return [
        "local.penalty samples gates, and local.dropout is another noise on the same weights: "
        "choose local/dropout=none, or local/penalty=none"
    ]


def _without_scales(net: nn.Module, penalty: Regulariser) -> list[str]:
    if penalty.formula is None or "scales" not in needs(penalty.formula) or scales(net):
        return []
    return [
        "local.penalty is on the scales of BatchNorm, and the network has none: "
        "choose model=resnet20 with model.norm=batch, or local/penalty=group_lasso"
    ]


def changed_layers(net: nn.Module, names: Sequence[str], regulariser: Regulariser) -> list[str]:
    """Return the layers of these weights, by name, that the regulariser would run in another way than they are written."""
    if not regulariser.layers:
        return []
    layers = {name.removesuffix(".weight"): net.get_submodule(name.rpartition(".")[0]) for name in names}
    if regulariser.of_any_layer:  # it calls the forward of their class, which an object may have replaced
        return [name for name, layer in layers.items() if "forward" in layer.__dict__]
    known = [kind for group in CHANNELLED for kind in LAYERS[group]]
    return [name for name, layer in layers.items() if kind_of(layer) in CHANNELLED and not is_plain(layer, known)]


def require(rules: Mapping[str, bool]) -> None:
    """Raise ConfigError with the rules that are broken. rules: what is to be said, and whether the rule is met."""
    problems = [problem for problem, met in rules.items() if not met]
    if problems:
        raise ConfigError(problems)
