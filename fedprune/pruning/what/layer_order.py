"""The order in which a network runs its layers: which come first, which give the outputs, and which stand before another.

layer_trace.py reads it from one run of the network; `by_definition` takes the order in which the layers are defined.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass

INPUT = 1
"""The bit of the network's input in the set of calls, as bits, that a value depends on. Call k has bit k + 1."""


@dataclass(frozen=True)
class LayerOrder:
    """The calls of a network's layers, and which call reads the outputs of which.

    weights: the names of each layer's weights, in the order of definition.
    calls: the layers, one entry per call, in the order of execution. A layer's last call gives its place in the order.
    reads: for each call, as bits, the calls (and the input) that it reads with no other call between.
    outputs: the same for each output tensor of the network.
    problem: what could not be found out; "" if everything could.

    Where a method takes names of weights and a layer has several, they count one after the other as they are defined.
    """

    weights: tuple[tuple[str, tuple[str, ...]], ...]
    calls: tuple[str, ...]
    reads: tuple[int, ...]
    outputs: tuple[int, ...]
    problem: str = ""

    def sorted(self, names: Collection[str]) -> tuple[str, ...]:
        """Return the weights of these names in the order of execution."""
        return tuple(name for layer in self._placed for name in self._weights[layer] if name in names)

    def first(self, names: Collection[str]) -> tuple[str, ...]:
        """Return the weights that the input reaches without passing any other of these names."""
        among = self._calls_of(names)
        sources = [call for call in calls_in(among) if not self._behind[call] & among]
        from_input = [call for call in sources if self._behind[call] & INPUT]
        layers = {self.calls[call] for call in from_input or sources}
        return self._ends(layers, names, 0) or self.sorted(names)[:1]

    def last(self, names: Collection[str]) -> tuple[str, ...]:
        """Return the weights that stand behind all others of these names on the way to one of the network's outputs."""
        among = self._calls_of(names)
        layers = {self.calls[call] for output in self.outputs for call in self._nearest(output, among)}
        return self._ends(layers, names, -1) or self.sorted(names)[-1:]

    def before(self, layer: str, layers: Collection[str]) -> tuple[str, ...]:
        """Return those of `layers` whose outputs a layer reads with no other of them between; empty for the first."""
        among = sum(2 << call for call, name in enumerate(self.calls) if name in layers)
        its_calls = [call for call, name in enumerate(self.calls) if name == layer]
        nearest = {self.calls[before] for call in its_calls for before in self._nearest(self.reads[call], among)}
        return tuple(name for name in self._placed if name in nearest)

    def _ends(self, layers: Collection[str], names: Collection[str], which: int) -> tuple[str, ...]:
        """Return the first (which=0) or last (-1) named weight of each layer, in the order of execution."""
        named = [[name for name in self._weights[layer] if name in names] for layer in self._placed if layer in layers]
        return tuple(weights[which] for weights in named)

    def _calls_of(self, names: Collection[str]) -> int:
        """Return the calls of the layers that have one of these weights, as bits."""
        layers = {layer for layer, weights in self.weights if not set(weights).isdisjoint(names)}
        return sum(2 << call for call, layer in enumerate(self.calls) if layer in layers)

    def _nearest(self, reads: int, among: int) -> list[int]:
        """Return the calls in `among` that a value depends on, no other of them between. reads: the calls that it reads."""
        waiting, seen, reached = reads & ~INPUT, 0, 0
        while waiting:
            call = waiting.bit_length() - 2
            seen |= 2 << call
            if among >> call & 2:
                reached |= 2 << call
            else:
                waiting |= self.reads[call] & ~INPUT
            waiting &= ~seen
        hidden = functools.reduce(lambda bits, call: bits | self._behind[call], calls_in(reached), 0)
        return calls_in(reached & ~hidden)

    @functools.cached_property
    def _behind(self) -> list[int]:
        """The calls, as bits, that each call's inputs depend on, directly or not."""
        behind: list[int] = []
        for reads in self.reads:
            behind.append(functools.reduce(lambda bits, call: bits | behind[call], calls_in(reads), reads))
        return behind

    @functools.cached_property
    def _weights(self) -> dict[str, tuple[str, ...]]:
        return dict(self.weights)

    @functools.cached_property
    def _placed(self) -> tuple[str, ...]:
        """All layers by their last call; a layer without a call comes after the layer that is defined before it."""
        placed = list(dict.fromkeys(reversed(self.calls)))[::-1]
        before = ""
        for layer, _ in self.weights:
            if layer not in placed:
                placed.insert(placed.index(before) + 1 if before else 0, layer)
            before = layer
        return tuple(placed)


def by_definition(layers: Mapping[str, tuple[str, ...]], problem: str = "") -> LayerOrder:
    """Return the order in which layers are defined: each reads the one before, and the last one gives the outputs."""
    number = len(layers)
    return LayerOrder(tuple(layers.items()), tuple(layers), tuple(1 << call for call in range(number)), (1 << number,), problem)


def calls_in(bits: int) -> list[int]:
    """Return the calls that bits stand for, in order."""
    return [call for call in range(max(bits.bit_length() - 1, 0)) if bits >> call & 2]
