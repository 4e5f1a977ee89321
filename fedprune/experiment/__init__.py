"""From a configuration to everything that a run needs, checked as a whole, and what it will cost."""
