"""Errors that the user can mend. Each message says what is wrong and what to type instead."""


class FedpruneError(Exception):
    """An error that the user can mend. A command shows its message without a traceback, and exits with a non-zero status."""


class ConfigError(FedpruneError):
    """A configuration is wrong. The message lists all problems at once, found before the first batch."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        listed = "\n".join(f"- {problem}" for problem in problems)
        super().__init__(listed if len(problems) > 1 else problems[0])


class Incompatible(ConfigError):
    """Every option is valid, but together they are meaningless. A sweep skips such a cell, with its reason."""

    def __init__(self, *problems: str):
        super().__init__(list(problems))


class DataError(FedpruneError):
    """A data file is missing, damaged, or cannot be divided as asked."""


class RunError(FedpruneError):
    """A run cannot go on: a full disk, a damaged checkpoint, a client whose loss is not a number."""


class Unheard(RunError):
    """No client that was asked for evidence answered. One may answer the next time, so a prune event waits."""


class NotANumber(RunError):
    """A score is NaN. layer: the name of the tensor that it is in."""

    def __init__(self, layer: str):
        self.layer = layer
        super().__init__(f"the criterion gave NaN for layer {layer.removesuffix('.weight')}")
