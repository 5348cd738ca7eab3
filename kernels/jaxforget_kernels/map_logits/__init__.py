"""Any function of each position's whole distribution, without keeping the distributions."""
