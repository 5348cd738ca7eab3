"""Vectors without their part in the span of an orthonormal basis: see `api.project_out`."""
