"""Pictures of answers for a page: files of records as text that an image element shows."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medbench.briefs import Brief
from medbench.errors import DataError
from medbench.files import bytes_digest

# Of one file, and of all of a page; longer pages load slowly, and a strip takes some ten thousand.
MOST_BYTES = 200_000
_ROOM = 4_000_000


class Pictures:
    """The pictures of a page's rows, as long as there is room."""

    def __init__(self) -> None:
        """None yet."""
        self._used = self._left_out = 0
        self._any = False

    def of(self, members: Sequence[Sequence[Brief]]) -> dict[str, str]:
        """By row number, the picture of its record of the lowest seed, as a ``data:`` address.

        Raises `DataError` for a file that is not what was recorded.
        """
        found: dict[str, str] = {}
        for i, briefs in enumerate(members):
            for brief in sorted(briefs, key=lambda b: b.own.seed):
                data = read_picture(brief)
                if data is None:
                    continue
                text = f"data:image/webp;base64,{base64.b64encode(data).decode()}"
                if self._used + len(text) > _ROOM:
                    self._left_out += 1
                else:
                    self._used += len(text)
                    found[str(i)] = text
                self._any = True
                break
        return found

    def told(self, metric: str) -> dict[str, Any] | None:
        """What the page says of all of them; None where there are none."""
        if not self._any:
            return None
        return {"masks": not metric.startswith(("ap", "froc")), "left_out": self._left_out}


def read_picture(brief: Brief) -> bytes | None:
    """The picture of a record; None where it has none, or where that was left behind.

    Raises `DataError` for a file that is not what was recorded, is too large, or no WebP file.
    """
    own = brief.own
    if not own.picture_file:
        return None
    path = Path(brief.folder, own.picture_file)
    try:
        # One that is longer is not read whole.
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError:
        # Whoever passes records on may keep images of patients back.
        return None
    fault = picture_fault(data, own.picture_digest)
    if fault:
        raise DataError(f"{path}: {fault}")
    return data


def picture_fault(data: bytes, digest: str) -> str:
    """What is wrong with the bytes of a picture, a sentence; empty where nothing is."""
    if len(data) > MOST_BYTES:
        return f"the picture has more than {MOST_BYTES} bytes, and pages show none so large."
    if bytes_digest(data) != digest:
        return (
            "the picture was changed after it was recorded; delete it, and its record has none, or "
            "run the suite again."
        )
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return "the picture is no WebP file."
    return ""
