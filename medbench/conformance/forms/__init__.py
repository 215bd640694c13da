"""What checks of algorithms have to know of each task kind: its tasks, and what answers are."""

from __future__ import annotations

from typing import Any

from medbench.conformance.forms.base import Form
from medbench.conformance.forms.boxes import BoxForm
from medbench.conformance.forms.classes import ClassForm
from medbench.conformance.forms.masks import MaskForm

__all__ = ["Form", "form_of"]

_FORMS: dict[str, type[Form[Any]]] = {
    "classification": ClassForm,
    "segmentation": MaskForm,
    "detection": BoxForm,
}


def form_of(task_kind: str) -> Form[Any]:
    """The form of a task kind, as `medbench.conformance.subject` names it."""
    return _FORMS[task_kind]()
