"""A workspace of Weights & Biases as code: accuracy against density, bytes and rounds, layers, clients, and the profile.

python -m fedprune.dashboard --save workspace.json
"""
