"""A decoder of symbols under tables, in whole numbers alone."""

import math


class ByHand:
    """Reads the same bytes with Python's whole numbers: the definitions, and nothing of what writes them.

    The state is the last two of the words of 32 bits. A symbol with the chances [first, first + many) of 2^24 is read where
    the state's last 24 bits fall among these; then state = (state >> 24) * many + (those bits - first), and below 2^32 a word
    is added.
    """

    def __init__(self, data: bytes):
        data += bytes(-len(data) % 4)
        self.words = [int.from_bytes(data[place : place + 4], "little") for place in range(0, len(data), 4)]
        self.state = 0
        for _ in range(2):
            self._refill()

    def _refill(self) -> None:
        if self.words:
            self.state = self.state << 32 | self.words.pop()

    def symbol(self, chances: list[int]) -> int:
        last, first, symbol = self.state % 2**24, 0, 0
        while first + chances[symbol] <= last:
            first, symbol = first + chances[symbol], symbol + 1
        self.state = (self.state >> 24) * chances[symbol] + last - first
        if self.state < 2**32:
            self._refill()
        return symbol

    def number(self) -> int:
        value = place = 0
        while True:
            part = self.symbol([2**16] * 256)
            value, place = value + (part % 128 << place), place + 7
            if part < 128:
                return value

    def counted(self, count: int) -> list[int]:
        size, level, levels = self.number(), 2 * count.bit_length(), []
        steps = chances([max(1, 128 - 2 * abs(step)) for step in range(-64, 65)])
        for _ in range(size):
            level += self.symbol(steps) - 64
            levels.append(level)
        table = chances(levels)
        return [self.symbol(table) for _ in range(count)]


def chances(levels: list[int]) -> list[int]:
    """1 each, and the rest of 2^24 in proportion to 2^(level / 2), rounded down; what is left to the first of the greatest."""
    weights = [math.isqrt(2 ** max(0, 48 + level - max(levels))) if level else 0 for level in levels]
    free = 2**24 - len(levels)
    shares = [weight * free // sum(weights) for weight in weights]
    shares[shares.index(max(shares))] += free - sum(shares)
    return [1 + share for share in shares]
