"""Tasks of lm-evaluation-harness, as a suite; needs the extra `harness`."""

import difflib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge

from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.evals.harness import adapter, flat
from jaxforget.evals.membership import Rows
from jaxforget.evals.suites.suite import Judged, SuiteResult


@dataclass(frozen=True)
class HarnessSuite:
    """The suite of the harness's tasks.

    Attributes:
      tasks: names of tasks or groups, as the harness has them.
      suite: "harness".
      include: folder of task files of one's own.
      shots: worked examples before a question; None: as each task has it.
      max_new_tokens: longest answer where a task does not say.
      batch_size: prompts generated at a time.
      limit: rows used of each task; None: all.
      seed: of worked examples and of sampling.
    """

    tasks: tuple[str, ...]
    suite: Literal["harness"] = "harness"
    include: str | None = None
    shots: Annotated[int, Ge(0)] | None = None
    max_new_tokens: Annotated[int, Ge(1)] = 256
    batch_size: Annotated[int, Ge(1)] = 32
    limit: Annotated[int, Ge(1)] | None = None
    seed: Annotated[int, Ge(0)] = 0


def read(settings: HarnessSuite) -> Any:
    """The harness's manager of tasks, which knows all that are asked for.

    Raises:
      UserError: the package is not installed, no task, or an unknown one.
    """
    if not settings.tasks:
        raise UserError("evaluate.tasks: names no task of the harness")
    try:
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"evaluate.suite: the harness cannot be used ({error}); install it: "
            "pip install 'jaxforget[harness]'"
        ) from error
    manager = TaskManager(include_path=settings.include)
    for name in settings.tasks:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, 3)
            hint = did_you_mean(name, near) if near else "`lm-eval ls tasks` lists them all."
            raise UserError(f"evaluate.tasks: no task {name!r}. {hint}")
    return manager


def evaluate(
    judged: Judged, manager: Any, settings: HarnessSuite, oracle: Rows | None = None
) -> SuiteResult:
    """Judge a model by the harness's tasks.

    Args:
      judged: see `Judged`; the template is not used, tasks have their own.
      manager: see `read`.
      settings: see `HarnessSuite`.
      oracle: not used; scores of two runs compare as they are.
    Returns:
      Every number that the harness gives, named task_metric, with intervals of its own standard
      errors.
    """
    from lm_eval.evaluator import simple_evaluate  # pyright: ignore[reportMissingImports]

    model = adapter(
        judged,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
    )
    found = simple_evaluate(
        model=model,
        tasks=list(settings.tasks),
        num_fewshot=settings.shots,
        limit=settings.limit,
        log_samples=False,
        task_manager=manager,
        random_seed=settings.seed,
        numpy_random_seed=settings.seed,
        fewshot_random_seed=settings.seed,
    )
    assert found is not None  # it is None in processes other than the harness's first only
    metrics, intervals = flat(found["results"])
    return SuiteResult(metrics, {}, intervals, {}, ())
