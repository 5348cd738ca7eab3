"""Global top-k by magnitude: see `api.threshold_mask`."""
