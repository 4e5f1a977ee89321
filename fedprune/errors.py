"""What can go wrong in a way that the user can mend. Each message says what is wrong and what to type instead."""


class FedpruneError(Exception):
    """Anything the user can mend: shown as a message, without a traceback, with a non-zero exit."""


class ConfigError(FedpruneError):
    """All problems of a configuration at once, found before the first batch."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("\n".join(f"- {problem}" for problem in problems) if len(problems) > 1 else problems[0])


class Incompatible(ConfigError):
    """Every option is valid, but together they mean nothing. Inside a sweep such a cell is skipped, with its reason."""

    def __init__(self, *problems: str):
        super().__init__(list(problems))


class DataError(FedpruneError):
    """A data file is missing, damaged, or cannot be divided as asked."""


class RunError(FedpruneError):
    """A run cannot go on: a full disk, a damaged checkpoint, a client whose loss is not a number."""


class Unheard(RunError):
    """Nobody answered who was asked for evidence, and somebody may the next time: a prune event waits for that."""
