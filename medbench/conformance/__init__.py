"""Checks of a plugin's behaviour, for ``medbench check`` and for an author's own tests.

In a plugin's test suite::

    from medbench import conformance


    @conformance.parametrize("acme/nearest")
    def test_conformance(check):
        check()

Each check becomes one test with the check's id. Importing this package imports neither torch nor
pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medbench.conformance.check import Examination, Result

__all__ = ["Bound", "checks", "parametrize"]


class Bound:
    """One check of one plugin, to be called in a test."""

    def __init__(self, name: str, subject: str, examination: Examination) -> None:
        self.id, self.subject, self._examination = name, subject, examination

    def __repr__(self) -> str:
        return self.id

    def result(self) -> Result:
        """What comes out of it; it is run at most once."""
        return self._examination.result(self.id)

    def __call__(self) -> None:
        """Pass, fail with a message that says what to mend, or skip and say why."""
        import pytest

        found = self.result()
        if found.bad:
            pytest.fail(found.message(), pytrace=False)
        if found.status != "ok":
            pytest.skip(f"{found.status}: {found.text}")


def checks(
    name: str, *, only: Sequence[str] = (), params: Mapping[str, Any] | None = None
) -> dict[str, list[Bound]]:
    """The checks of the plugin called `name`, for each kind of plugin that the name means.

    `only` chooses checks by id, `params` replaces parameters. Raises `UsageError`.
    """
    from medbench.conformance.check import pick
    from medbench.conformance.subject import find_subjects
    from medbench.conformance.suite import checks_of, examine
    from medbench.plugins import registry

    found: dict[str, list[Bound]] = {}
    for subject in find_subjects(registry(), name, params):
        examination = examine(subject)
        chosen = pick(checks_of(subject.kind), only)
        found.setdefault(subject.kind, []).extend(
            Bound(c.id, subject.shown, examination) for c in chosen
        )
    return found


def parametrize(
    *names: str, only: Sequence[str] = (), params: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A pytest decorator: one test for each check of each plugin, in the argument ``check``.

    Names are as `medbench check` takes them. Raises `UsageError` when tests are collected.
    """
    import pytest

    cases = []
    for name in names:
        for kind, found in checks(name, only=only, params=params).items():
            cases += [pytest.param(one, id=f"{kind[:-1]}-{one.subject}-{one.id}") for one in found]
    return pytest.mark.parametrize("check", cases)
