"""Things to train: one task, one small file. Knows nothing of update rules, nor of searching for them.

>>> import tasks
>>> task = tasks.load("digits_mlp")
>>> task.size, task.batch_size, task.horizon
(2410, 64, 60)
"""

from tasks.library import check, check_name, load, names
from tasks.references import Reference, reference, variants
from tasks.task import Batch, Parameter, Role, Task

__all__ = [
    "Batch",
    "Parameter",
    "Reference",
    "Role",
    "Task",
    "check",
    "check_name",
    "load",
    "names",
    "reference",
    "variants",
]
