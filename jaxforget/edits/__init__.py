"""Closed-form weight edits: no loop, one shot."""
