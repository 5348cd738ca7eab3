"""Kullback-Leibler divergence of two output distributions straight from hidden states."""
