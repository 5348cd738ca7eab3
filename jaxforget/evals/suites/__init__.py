"""Suites of other benchmarks than TOFU, and of one's own data: settings, reading, judging.

Each file holds the settings of one suite as a frozen dataclass and two functions: `read(settings)`
gives its data, before anything is computed, and `evaluate(judged, data, settings, oracle)` a
`SuiteResult`.
"""
