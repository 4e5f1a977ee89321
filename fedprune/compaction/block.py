"""Parts of a network's tensors, taken out and put back."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Block(NamedTuple):
    """The smaller network's tensor `name` is these rows and columns (None: all) of the whole network's tensor `whole`, or these
    entries of it, by their flat numbers."""

    name: str
    whole: str
    rows: Tensor | None = None
    columns: Tensor | None = None
    entries: Tensor | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """This part of a tensor: a copy, or the tensor itself if it is all of it."""
        if self.entries is not None:
            return tensor.reshape(-1).index_select(0, self.entries)
        if self.rows is not None and tensor.dim():
            tensor = tensor.index_select(0, self.rows)
        return tensor if self.columns is None else tensor.index_select(1, self.columns)

    def put(self, part: Tensor, whole: Tensor) -> None:
        """Write this part into a whole tensor."""
        if self.entries is not None:
            whole.view(-1).index_copy_(0, self.entries, part)
            return
        if self.columns is not None:
            rows = whole if self.rows is None else whole.index_select(0, self.rows)
            part = rows.index_copy_(1, self.columns, part)
        if self.rows is None or not whole.dim():
            whole.copy_(part)
        else:
            whole.index_copy_(0, self.rows, part)
