"""The backward sweep of Optimal Brain Damage (LeCun, Denker & Solla 1990).

It approximates the diagonal of the Hessian for the price of a backward pass. At each step slopes g and curvatures h (second
derivatives, one per entry) go from outputs to inputs:

    linear, convolution   h_x = sum over outputs of w^2 h_y; and of a weight, sum over the connections that share it of x^2 h_y
    tanh                  h_x = f'^2 h_y + f'' g_y    (with a plus; the circulating copy of the paper has a minus)
    ReLU, maximum, flatten   h_x = h_y where the entry passes
    average over n           h_x = h_y / n^2

The network must be a chain of these, each called once and of exactly that class; torch.fx reads it from the module's own
forward.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedprune.plain_layers import changed
from fedprune.pruning.evidence.curvature import instead_of_hessian
from fedprune.pruning.evidence.loss import Batch, gathered, loss_hessian, loss_of_outputs, net_of, over_examples, split
from fedprune.pruning.evidence.network import Network, first_few
from fedprune.tensors import tied_parameter
from fedprune.types import Params

PASSES = (
    *(nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Identity, F.relu, torch.relu, F.max_pool2d, torch.max_pool2d),
    *(torch.flatten, torch.reshape, "relu", "flatten", "reshape", "view"),
)
CURVES = (nn.Tanh, torch.tanh, F.tanh, "tanh")
AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, F.avg_pool2d, F.adaptive_avg_pool2d)
WEIGHTED = (nn.Linear, nn.Conv2d)


class Step(NamedTuple):
    """One operation of the chain.

    kind: the layer's class, the function, or the method's name. run: (input, the network's tensors) -> output.
    """

    name: str
    kind: object
    run: Callable[[Tensor, Params], Tensor]


def hessian_sweep(module: nn.Module, params: Params, names: tuple[str, ...], batches: Iterable[Batch]) -> Params:
    """Return the diagonal of the mean loss's Hessian, by the sweep.

    The sweep starts from the exact diagonal of the loss's Hessian by the outputs. It neglects the other entries (softmax has
    some), and those between hidden units.
    """
    wanted, others = split(params, names)
    steps, tensors = chain(net_of(module)), wanted | others

    @torch.no_grad()
    def swept(batch: Batch) -> Params:
        values = [batch[0]]
        for step in steps:
            values.append(step.run(values[-1], tensors))
        slopes = len(batch[0]) * torch.func.grad(lambda z: loss_of_outputs(module, z, batch))(values[-1])
        curvatures = loss_hessian(module, values[-1], batch).diagonal(dim1=1, dim2=2)
        by_weight = dict(_backward(steps, values, slopes, curvatures, tensors))
        return {name: by_weight[name] for name in names if name in by_weight}

    return over_examples(swept, gathered(batches), wanted)


def chain(net: nn.Module) -> list[Step]:
    """Return the network as steps, each of which takes in exactly the output of the one before. It must pass `unswept`."""
    return [_step(node, dict(net.named_modules())) for node in fx.symbolic_trace(net).graph.nodes if _acts(node)]


def unswept(net: nn.Module) -> list[str]:
    """Return the parts of the network that the sweep cannot pass, as text; the whole network if its forward cannot be read."""
    if changed(net):
        return [f"{name or type(net).__name__}, which has a hook or a forward of its own" for name in changed(net)]
    try:
        *nodes, output = fx.symbolic_trace(net).graph.nodes
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError) as error:
        return [f"the whole {type(net).__name__}, whose forward torch.fx cannot read ({str(error).splitlines()[0]})"]
    if output.args[0] is not nodes[-1]:
        return [f"the outputs of {type(net).__name__}, which are not what its last operation gives"]
    modules = dict(net.named_modules())
    tied = tied_parameter(net, (name for name, _ in net.named_parameters()))
    known = {*PASSES, *CURVES, *AVERAGES, *WEIGHTED}
    times = Counter(node.target for node in nodes if node.op == "call_module")
    again = [node for node in nodes if times[node.target] > 1 and _kind(node, modules) in WEIGHTED]
    twice = [f"{target}, which is called more than once" for target in dict.fromkeys(node.target for node in again)]
    return [*([tied] if tied else []), *twice] + [
        _called(node, modules)
        for before, node in itertools.pairwise(nodes)
        if not _acts(node) or node.args[:1] != (before,) or len(node.all_input_nodes) > 1 or _kind(node, modules) not in known
    ]


def no_sweep(network: Network, names: tuple[str, ...]) -> str | None:
    """Return why `hessian_sweep` cannot be measured in this network, or None."""
    parts = unswept(network.net)
    if not parts:
        return None
    return f"the backward sweep does not pass {first_few(parts)}: choose criterion={instead_of_hessian(network, names)}"


def _acts(node: fx.Node) -> bool:
    return node.op in ("call_module", "call_function", "call_method")


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> object:
    return type(modules[str(node.target)]) if node.op == "call_module" else node.target


def _called(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        return f"{node.target} ({type(modules[str(node.target)]).__name__})"
    return f"{getattr(node.target, '__name__', node.target)} in its forward"


def _step(node: fx.Node, modules: dict[str, nn.Module]) -> Step:
    name, rest, options = str(node.target), node.args[1:], node.kwargs
    run: Callable[[Tensor, Params], Tensor]
    if node.op == "call_module":
        layer = modules[name]
        parameters = [parameter for parameter, _ in layer.named_parameters()]
        run = lambda x, tensors: functional_call(layer, {p: tensors[f"{name}.{p}"] for p in parameters}, (x,))  # noqa: E731
    elif node.op == "call_function":
        function = cast(Callable[..., Tensor], node.target)
        run = lambda x, tensors: function(x, *rest, **options)  # noqa: E731
    else:
        run = lambda x, tensors: getattr(x, name)(*rest, **options)  # noqa: E731
    return Step(name, _kind(node, modules), run)


def _backward(
    steps: list[Step], values: list[Tensor], slopes: Tensor, curvatures: Tensor, tensors: Params
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, sum over the examples of the curvature by this weight), from the last layer to the first."""
    curved = [step.kind in CURVES for step in steps]
    for number in reversed(range(len(steps))):
        step, x, y = steps[number], values[number], values[number + 1]
        if step.kind in WEIGHTED:
            name = f"{step.name}.weight"
            at_weights, curvatures = _pull_squares(step, name, x, tensors, curvatures, last=number == 0)
            yield name, at_weights
            if number == 0:
                return
        elif step.kind in CURVES:
            first = 1 - y.square()
            curvatures = first.square() * curvatures - 2 * y * first * slopes
        elif step.kind in AVERAGES:
            curvatures = _through_average(step, x, curvatures)
        else:
            curvatures = _pull(lambda x: step.run(x, tensors), x, curvatures)  # noqa: B023
        if any(curved[:number]):  # only curves before this step need slopes
            slopes = _pull(lambda x: step.run(x, tensors), x, slopes)  # noqa: B023


def _pull(function: Callable[[Tensor], Tensor], at: Tensor, cotangent: Tensor) -> Tensor:
    """Return the transposed derivative of `function` at a point, times `cotangent`."""
    product: Tensor = torch.func.vjp(function, at)[1](cotangent)[0]
    return product


def _pull_squares(step: Step, name: str, x: Tensor, tensors: Params, curvatures: Tensor, last: bool) -> tuple[Tensor, Tensor]:
    """Return the curvature by the weights, and by the inputs.

    The layer is linear in both, so the derivative by either, at the squares of both, has the square of the other: one
    transposed derivative gives the two sums of products. last: the curvature by the inputs is not needed, and is returned as it
    came.
    """
    inputs, weights = x.square(), tensors[name].square()
    if last:
        return _pull(lambda w: step.run(inputs, tensors | {name: w}), weights, curvatures), curvatures
    at_weights, at_inputs = torch.func.vjp(lambda w, x: step.run(x, tensors | {name: w}), weights, inputs)[1](curvatures)
    return at_weights, at_inputs


def _through_average(step: Step, x: Tensor, curvatures: Tensor) -> Tensor:
    """Return the curvature by the inputs of an average: a matrix, the same for every channel, with its entries squared."""
    image = x[:1, :1]
    matrix: Tensor = torch.func.jacrev(lambda image: step.run(image, {}))(image).view(-1, image.numel())
    return (curvatures.flatten(2) @ matrix.square()).view(x.shape)
