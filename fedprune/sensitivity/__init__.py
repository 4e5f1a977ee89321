"""The loss of a finished run's network as more and more of it is deleted, without retraining.

By criterion, over all layers, this is the deletion curve of Optimal Brain Damage (LeCun et al. 1990, figures 1 and 2), with the
increase that the criterion predicts beside the measured one. Layer by layer it is the sensitivity scan by which Han et al. 2015
choose their thresholds (figure 6).
"""
