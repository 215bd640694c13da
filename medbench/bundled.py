"""The suites inside the package, as text: listing them needs no more."""

from __future__ import annotations

from pathlib import Path


def bundled_suites() -> dict[str, str]:
    """Names of the suites inside the package, each with its YAML text."""
    folder = Path(__file__).with_name("suites")
    return {p.stem: p.read_text(encoding="utf-8") for p in sorted(folder.glob("*.yaml"))}
