"""The engine: core types, compiled step, mesh and sharding, checkpoints, run directories.

Nothing here knows what a language model, a tokenizer or a data file is.
"""
