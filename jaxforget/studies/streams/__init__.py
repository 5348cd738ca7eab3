"""A stream of tasks as it is trained: `stream` says what a run needs, `batches` what a step sees,
`boundary` what happens between two tasks, `training` conducts them; `measures`, `looks` and
`results` say what is kept of every task.
"""
