"""An engine that discovers optimizer update rules for deep learning.

`from discover import optim` is what a training script needs; it imports neither tasks, nor ray, nor optuna.
"""

import os as _os
from importlib.util import find_spec as _find_spec
from pathlib import Path as _Path

# Before MKL's first product: the same bits wherever in memory a matrix lies. Otherwise a lane's results depend in their
# last bits on its place among others. Measured on the tasks' gradients it costs nothing.
_os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

for _package, _file in (("dsl", "ops.py"), ("tasks", "library.py")):
    _spec = _find_spec(_package)
    if _spec is None or not _spec.origin or not (_Path(_spec.origin).parent / _file).exists():
        _found = "nowhere" if _spec is None else f"in {_spec.origin or list(_spec.submodule_search_locations or ())}"
        raise ImportError(
            f"discover needs its own package '{_package}', but Python finds '{_package}' {_found}; rename or remove"
            " what hides it, or install optimizer-discovery in an environment of its own"
        )
