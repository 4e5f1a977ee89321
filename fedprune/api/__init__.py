"""fedprune from Python: compose a configuration, do a run or a sweep, read a run that was done.

The command line is built on it: `python -m fedprune` does its jobs with `attempt` of launch.py, too.
"""
