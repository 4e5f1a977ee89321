"""The rule by which each function of torch is followed.

    linear, convolution, matrix product, product    varying where a varying factor meets one that is nonzero
    sum, difference, mean, pool, quotient           varying where any operand varies
    curves                                          each entry by itself; a constant 0 stays 0, but not under a sigmoid
    softmax                                         mixes the entries that it goes over
    normalisation, dropout                          each entry by itself: the statistics that units share are not paths

The forward of a network that calls any other function cannot be followed.
"""

from __future__ import annotations

import functools

import torch.nn.functional as F

from fedprune.pruning.connectivity.dependence import Rule
from fedprune.pruning.connectivity.entrywise import (
    added,
    chosen,
    clamped,
    divided,
    filled,
    multiplied,
    nonzero_at_zero,
    power,
    put,
    swapped,
    zero_at_zero,
)
from fedprune.pruning.connectivity.mixing import (
    adaptive_max_pool,
    einsum,
    filled_anew,
    glu,
    largest,
    layer,
    matrix_product,
    max_pool,
    moved,
    padded,
    resized,
    right_matrix_product,
    softmax,
    summed,
    unchanged,
    unit_length,
)


def _for(rule: Rule, names: str) -> dict[str, Rule]:
    """Return the same rule for each of the names, which spaces separate."""
    return dict.fromkeys(names.split(), rule)


VIEWS: dict[str, Rule] = {
    **_for(moved, "view reshape flatten unflatten ravel transpose permute t T mT movedim moveaxis swapaxes swapdims squeeze"),
    **_for(moved, "unsqueeze expand broadcast_to narrow select getitem chunk split tensor_split unbind diagonal unfold"),
    **_for(
        unchanged, "contiguous detach data to float dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout"
    ),
}
"""Functions whose result shares memory with their argument: writing in place into either is not followed."""

RULES: dict[str, Rule] = VIEWS | {
    **_for(unchanged, "clone double half bfloat16 type_as"),
    **_for(moved, "repeat tile index_select gather take_along_dim cat concat concatenate stack hstack vstack flip roll rot90"),
    **_for(moved, "pixel_shuffle pixel_unshuffle channel_shuffle tril triu repeat_interleave"),
    **_for(padded, "pad"),
    **_for(added, "add iadd radd sub subtract isub rsub maximum minimum"),
    **_for(summed, "sum mean nansum cumsum avg_pool1d avg_pool2d avg_pool3d"),
    **_for(summed, "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"),
    **_for(largest, "amax amin"),
    **_for(multiplied, "mul multiply imul rmul"),
    **_for(divided, "div divide true_divide truediv itruediv"),
    **_for(functools.partial(swapped, divided), "rtruediv rdiv"),
    **_for(matrix_product, "matmul mm bmm mv"),
    **_for(right_matrix_product, "rmatmul"),
    **_for(einsum, "einsum"),
    **_for(layer, "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"),
    **_for(
        zero_at_zero,
        "relu relu6 leaky_relu elu selu celu gelu silu mish prelu rrelu tanh hardswish softsign softshrink hardshrink",
    ),
    **_for(
        zero_at_zero, "tanhshrink neg abs square sqrt sin tan asin atan sinh asinh erf log1p expm1 local_response_norm rms_norm"
    ),
    **_for(
        nonzero_at_zero, "sigmoid hardsigmoid softplus logsigmoid exp exp2 log log2 log10 cos cosh acos rsqrt reciprocal erfc"
    ),
    **_for(nonzero_at_zero, "batch_norm group_norm layer_norm instance_norm"),
    **_for(clamped, "clamp clip hardtanh"),
    **_for(power, "pow ipow"),
    **_for(functools.partial(swapped, power), "rpow"),
    **_for(softmax, "softmax log_softmax"),
    **_for(unit_length, "normalize"),
    **_for(glu, "glu"),
    "max_pool1d": functools.partial(max_pool, F.avg_pool1d),
    "max_pool2d": functools.partial(max_pool, F.avg_pool2d),
    "max_pool3d": functools.partial(max_pool, F.avg_pool3d),
    "adaptive_max_pool1d": functools.partial(adaptive_max_pool, F.adaptive_avg_pool1d),
    "adaptive_max_pool2d": functools.partial(adaptive_max_pool, F.adaptive_avg_pool2d),
    "adaptive_max_pool3d": functools.partial(adaptive_max_pool, F.adaptive_avg_pool3d),
    **_for(resized, "interpolate upsample"),
    **_for(chosen, "where"),
    **_for(filled, "masked_fill"),
    **_for(put, "setitem"),
    **_for(filled_anew, "new_zeros new_ones new_full zeros_like ones_like full_like"),
}
"""The rule of each function of torch, by its name without underscores: functions, methods and operators have one rule."""
