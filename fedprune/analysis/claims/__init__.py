"""Published claims, judged by the runs of a benchmark: claims in a yaml, values by seed in a csv, verdicts in a page.

    python -m fedprune.analysis.claims docs/benchmark.md --runs outputs/benchmark

Beside the page are `benchmark_claims.yaml`, which people write, and `benchmark_runs.csv`, which this command writes from the
runs. Every difference in the page follows from that table.
"""

from fedprune.analysis.claims.claim import Claim, Measured, load_claims
from fedprune.analysis.claims.judge import Judgement, judge
from fedprune.analysis.claims.outcomes import METRICS, by_seed, outcomes

__all__ = ["METRICS", "Claim", "Judgement", "Measured", "by_seed", "judge", "load_claims", "outcomes"]
