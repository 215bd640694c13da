"""Libraries that only some data need, loaded when such data are opened."""

from __future__ import annotations

import importlib
from typing import Any

from medbench.api import Unavailable


def needed(module: str, what: str) -> Any:
    """A module of the extra ``medical``; raises `Unavailable` that names the extra."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"{what} cannot be read: the package {module.partition('.')[0]} is not installed. "
            "Install the extra `medical`: pip install 'medbench[medical]'."
        ) from error
