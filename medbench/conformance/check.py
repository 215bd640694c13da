"""A check as data and function, what may come out of it, and how a list of them is run."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from medbench.api import Excuse
from medbench.errors import MedbenchError, UsageError, did_you_mean

Status = Literal["ok", "failed", "excused", "unneeded", "does not apply", "blocked"]
BAD: tuple[Status, ...] = ("failed", "unneeded")


class Broken(Exception):
    """A check's finding: what was seen, and what was expected instead.

    `hint` says how this one is mended, where that is not what the check's own hint says.
    """

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint


class DoesNotApply(Exception):
    """A check has nothing to look at here; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One promise of a plugin, small enough that its failure says what to change.

    ``reason`` says why it matters, ``hint`` how it is usually mended. ``needs`` names checks
    without which this one means nothing: when one of them fails, this one is not run. ``exact``
    marks checks that compare scores, which methods declared not deterministic are spared.
    """

    id: str
    kind: str
    reason: str
    hint: str
    run: Callable[[Any], None]
    needs: tuple[str, ...] = ()
    exact: bool = False


@dataclass(frozen=True)
class Result:
    """What came out of one check of one plugin; ``text`` is empty when all is well."""

    check: Check
    status: Status
    text: str = ""
    seconds: float = 0.0
    hint: str = ""

    @property
    def bad(self) -> bool:
        """Whether the plugin has to change."""
        return self.status in BAD

    def message(self) -> str:
        """All that an author needs to mend it."""
        if self.status == "unneeded":
            return (
                f"{self.check.id}: the spec excuses this check ({self.text}), and it passes. "
                "Take the excuse out of the spec's conformance."
            )
        return f"{self.check.id}: {self.text}\n  why: {self.check.reason}\n  fix: {self.hint}"


class Shelf:
    """The checks of one kind of plugin, in the order in which they run."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.checks: dict[str, Check] = {}

    def add(
        self, name: str, *, reason: str, hint: str, needs: Sequence[str] = (), exact: bool = False
    ) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
        """A decorator that makes a function the check called `name`."""

        def keep(run: Callable[[Any], None]) -> Callable[[Any], None]:
            unknown = set(needs) - set(self.checks)
            if name in self.checks or unknown:
                raise UsageError(f"check {name!r} is given twice, or needs {sorted(unknown)}.")
            self.checks[name] = Check(
                id=name,
                kind=self.kind,
                reason=reason,
                hint=hint,
                run=run,
                needs=tuple(needs),
                exact=exact,
            )
            return run

        return keep

    def take(self, *checks: Check) -> None:
        """Have checks that every kind has, too."""
        for check in checks:
            self.checks[check.id] = check

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks.values())


def pick(checks: Mapping[str, Check], only: Sequence[str]) -> list[Check]:
    """The checks called `only` (all, when empty). Raises `UsageError` for an unknown id."""
    for name in only:
        if name not in checks:
            raise UsageError(f"There is no check {name!r}.{did_you_mean(name, checks)}")
    return [check for name, check in checks.items() if not only or name in only]


class Examination:
    """The checks of one plugin, each run at most once, what it needs before it."""

    def __init__(
        self,
        subject: Any,
        checks: Mapping[str, Check],
        excuses: Sequence[Excuse] = (),
        params: Mapping[str, object] | None = None,
        deterministic: bool = True,
    ) -> None:
        """`excuses` are those of the spec; `params` decide which of them hold."""
        self._subject, self._checks, self._deterministic = subject, checks, deterministic
        self._results: dict[str, Result] = {}
        for excuse in excuses:
            if excuse.check not in checks:
                raise UsageError(
                    f"The spec excuses a check {excuse.check!r}, which there is not."
                    f"{did_you_mean(excuse.check, checks)}"
                )
            if not excuse.reason.strip():
                raise UsageError(f"The spec excuses check {excuse.check!r} and gives no reason.")
        self._excuses = {e.check: e.reason for e in excuses if e.holds(params or {})}

    def result(self, name: str) -> Result:
        """What comes out of the check called `name`."""
        if name not in self._results:
            start = time.perf_counter()
            check = self._checks[name]
            status, text, hint = self._outcome(check)
            seconds = time.perf_counter() - start
            self._results[name] = Result(check, status, text, seconds, hint or check.hint)
        return self._results[name]

    def _outcome(self, check: Check) -> tuple[Status, str, str]:
        for need in check.needs:
            if self.result(need).status in ("failed", "blocked"):
                return "blocked", f"says nothing before {need} passes", ""
        if check.exact and not self._deterministic:
            return "does not apply", "the plugin declares itself not deterministic", ""
        excuse = self._excuses.get(check.id)
        try:
            check.run(self._subject)
        except DoesNotApply as why:
            return "does not apply", str(why), ""
        except Broken as finding:
            return self._failed(excuse, str(finding), finding.hint)
        except (Exception, SystemExit) as error:
            return self._failed(excuse, in_words(error))
        return ("unneeded", excuse, "") if excuse else ("ok", "", "")

    @staticmethod
    def _failed(excuse: str | None, text: str, hint: str = "") -> tuple[Status, str, str]:
        return ("excused", excuse, "") if excuse else ("failed", text, hint)


def in_words(error: BaseException) -> str:
    """An exception of a plugin in one line, with the place in the plugin's own code."""
    if isinstance(error, MedbenchError):
        return str(error)
    frame = _place(error.__traceback__)
    text = str(error).strip().splitlines()
    said = f": {text[0]}" if text else ""
    return f"raised {type(error).__name__}{said}{f' ({frame})' if frame else ''}"


def _place(found: TracebackType | None) -> str:
    """The last line outside of medbench and of libraries, as ``file.py:12, in adapt``."""
    frames = traceback.extract_tb(found)
    own = [f for f in frames if Path(f.filename).is_file() and not _is_foreign(f.filename)]
    if not own:
        return ""
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}, in {own[-1].name}"


def _is_foreign(file: str) -> bool:
    parts = Path(file).parts
    return "medbench" in parts[:-1] or "site-packages" in parts
