"""A page for each published claim: conf/experiment/home has the smallest run that keeps the paper's regime, and this the page.

    python -m fedprune.analysis.home lotteryfl --into docs/home

sweep.py reads the yaml, evidence.py takes the numbers from its runs, judgement.py compares them, page.py and index.py write.
The numbers are kept beside the page, as a JSON file, from which page and index can be written again.
"""

from fedprune.analysis.home.evidence import Evidence, collect
from fedprune.analysis.home.index import index
from fedprune.analysis.home.judgement import Judgement, judge
from fedprune.analysis.home.page import page
from fedprune.analysis.home.sweep import Sweep, load_sweep

__all__ = ["Evidence", "Judgement", "Sweep", "collect", "index", "judge", "load_sweep", "page"]
