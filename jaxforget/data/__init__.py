"""Text to packed batches of tokens; knows nothing of models.

`sources` reads `records`, `template` and `tokenise` turn them into `sets`, `pack` and `batches`
into rows of fixed shape.
"""
