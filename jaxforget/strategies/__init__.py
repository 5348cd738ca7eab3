"""Training on a stream of tasks without losing the earlier ones.

`Guard`s hold parameters with any optax optimizer and any model (`as_transform`, `end_task`);
`Strategy`s add what a stream needs besides: replayed examples, teachers, phases. Nothing here knows
a model, a tokenizer or a file.
"""

from jaxforget.strategies.adapters import o_lora, reg_lora
from jaxforget.strategies.averaging import ema, max_merge, snapshot, task_average, wise_ft
from jaxforget.strategies.catalogue import STRATEGIES, Entry, from_config, get, names, table
from jaxforget.strategies.guard import (
    NOTHING,
    Guard,
    GuardedState,
    as_transform,
    chain,
    end_task,
    evaluated,
    reset_optimizer,
)
from jaxforget.strategies.importances import diagonal, fisher, output_sensitivity
from jaxforget.strategies.path_integral import si
from jaxforget.strategies.quadratic import ewc, mas
from jaxforget.strategies.schedules import infinite, rewarmed
from jaxforget.strategies.selection import (
    condition_numbers,
    fpf,
    kappatune,
    lowest,
    module_changes,
    only,
)
from jaxforget.strategies.steps import make_step
from jaxforget.strategies.strategy import (
    Rehearsal,
    Strategy,
    Term,
    check_stream,
    evaluated_params,
    next_task,
    prepared,
    together,
)
from jaxforget.strategies.subspaces import gpm, gradient_inputs, ogd

__all__ = [
    "NOTHING",
    "STRATEGIES",
    "Entry",
    "Guard",
    "GuardedState",
    "Rehearsal",
    "Strategy",
    "Term",
    "as_transform",
    "chain",
    "check_stream",
    "condition_numbers",
    "diagonal",
    "ema",
    "end_task",
    "evaluated",
    "evaluated_params",
    "ewc",
    "fisher",
    "fpf",
    "from_config",
    "get",
    "gpm",
    "gradient_inputs",
    "infinite",
    "kappatune",
    "lowest",
    "make_step",
    "mas",
    "max_merge",
    "module_changes",
    "names",
    "next_task",
    "o_lora",
    "ogd",
    "only",
    "output_sensitivity",
    "prepared",
    "reg_lora",
    "reset_optimizer",
    "rewarmed",
    "si",
    "snapshot",
    "table",
    "task_average",
    "together",
    "wise_ft",
]
