"""The type checker that the tests run the package under; ints pass for floats, as everywhere in Python."""

from threading import Lock
from typing import Any

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_decorating = Lock()


def checked(decorated: Any) -> Any:
    """The same with its annotations checked at every call.

    beartype records warnings meanwhile, which holds for the whole process: two threads at a time, where functions are made in functions,
    would leave the recorder of one behind, and a test would wait for its warning in vain.
    """
    with _decorating:
        return _check(decorated)
