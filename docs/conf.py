"""Sphinx builds the documentation from here; the reference is generated from the code first."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "plugins")]

import reference_pages  # noqa: E402

import medbench  # noqa: E402

project = "medbench"
author = "The medbench authors"
copyright = f"2026, {author}"  # noqa: A001
version = release = medbench.__version__
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "tutorial/acme-*/**"]
html_theme = "furo"
html_title = f"medbench {release}"
html_static_path: list[str] = []

reference_pages.write(HERE / "reference")
