"""Log-probabilities of targets straight from hidden states."""
