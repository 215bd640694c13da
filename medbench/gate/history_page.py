"""A history as one HTML page that needs nothing from elsewhere: tables and drawings (SVG)."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

from medbench.gate.history import History, Series
from medbench.gate.reports.words import METRICS

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 150, 62, 10, 10, 24
_Scale = Callable[[float], float]
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222;
background:#fff}h1{font-size:1.4rem}h2{font-size:1.05rem;margin:2rem 0 .3rem}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .7rem;text-align:left;
border-bottom:1px solid #ddd}td.n{text-align:right;font-variant-numeric:tabular-nums}
.worse{color:#a40000;font-weight:600}.better{color:#00632b}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(25rem,1fr));gap:.5rem 1rem}
figure{margin:0}figcaption{font-size:.85rem;color:#555}svg{width:100%;height:auto}
svg text{font:11px system-ui,sans-serif;fill:#555}
@media(prefers-color-scheme:dark){body{background:#16181b;color:#ddd}td,th{border-color:#333}
svg text,figcaption{fill:#aaa;color:#aaa}.worse{color:#ff8f87}.better{color:#7fd39a}}
"""


def page(history: History) -> str:
    """The page's text."""
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>medbench history</title><style>{_STYLE}</style></head><body>",
        f"<h1>History of {len(history.runs)} runs</h1>",
        f"<p>{_text(history.created[0][:10])} to {_text(history.created[-1][:10])}. Times are "
        "without waiting for a core, and corrected by each run's calibration of its machine.</p>",
        _steps(history),
    ]
    parts += [f"<p>{_text(n)}</p>" for n in history.notices]
    for title in dict.fromkeys(s.title for s in history.series):
        own = [s for s in history.series if s.title == title]
        plots = "".join(_figure(history, s) for s in own)
        parts.append(f"<h2>{_text(title)}</h2><div class=plots>{plots}</div>")
    return "".join([*parts, "</body></html>\n"])


def shown(series: Series, value: float) -> str:
    """A value with its unit."""
    if series.kind == "accuracy":
        return f"{100 * value:.2f} %"
    return f"{1000 * value:.3g} ms" if series.kind == "time" else f"{value / 2**20:.2f} MiB"


def shown_change(series: Series, change: tuple[float, float, float]) -> str:
    """A change with its interval."""
    unit = " points" if series.kind == "accuracy" else " %"
    mid, low, high = (100 * v for v in change)
    return f"{mid:+.1f}{unit} [{low:+.1f}, {high:+.1f}]"


def _steps(history: History) -> str:
    if not history.stepped:
        return "<p>No step was found.</p>"
    rows = []
    for series, step in history.stepped:
        before, after = series.before_after(step)
        kind = "worse" if series.worse(step) else "better"
        run = series.runs[step.at]
        cells = [
            f"<td>{_text(history.created[run][:16])}",
            f"<td>{_text(history.runs[run])}",
            f"<td>{_text(series.title)}",
            f"<td>{_text(METRICS.get(series.metric, series.metric))}",
            f"<td class=n>{shown(series, before)}",
            f"<td class=n>{shown(series, after)}",
            f"<td class='n {kind}'>{_text(shown_change(series, series.change(step)))}",
        ]
        rows.append("<tr>" + "".join(cells))
    head = "".join(
        f"<th>{h}" for h in ("when", "run", "cell", "metric", "before", "after", "step [95 %]")
    )
    return f"<table><thead><tr>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _figure(history: History, series: Series) -> str:
    name = METRICS.get(series.metric, series.metric)
    return (
        f"<figure><figcaption>{_text(name)}, last {shown(series, series.values[-1])}</figcaption>"
        f"{_drawing(history, series, name)}</figure>"
    )


def _drawing(history: History, series: Series, name: str) -> str:
    low, high = min(series.values), max(series.values)
    room = (high - low) * 0.1 or abs(high) * 0.05 or 1.0
    low, high = low - room, high + room
    n = max(len(history.runs) - 1, 1)

    def x(run: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * run / n

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

    parts = [
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role=img "
        f"aria-label='{_text(name)} over {len(series.runs)} runs'>"
    ]
    parts += [
        f"<line x1={_LEFT} x2={_WIDTH - _RIGHT} y1={y(value):.1f} y2={y(value):.1f} "
        f"stroke='#8884'/><text x={_LEFT - 6} y={y(value) + 4:.1f} text-anchor=end>"
        f"{shown(series, value)}</text>"
        for value in (low + room, high - room)
    ]
    for run, anchor in ((0, "start"), (len(history.runs) - 1, "end")):
        parts.append(
            f"<text x={x(run):.1f} y={_HEIGHT - 6} text-anchor={anchor}>"
            f"{_text(history.created[run][:10])}</text>"
        )
    parts += _levels(series, x, y)
    for run, value in zip(series.runs, series.values, strict=True):
        told = f"{_text(history.runs[run])}: {shown(series, value)}"
        parts.append(
            f"<circle cx={x(run):.1f} cy={y(value):.1f} r=2.5 fill='#3b6fb6'>"
            f"<title>{told}</title></circle>"
        )
    return "".join([*parts, "</svg>"])


def _levels(series: Series, x: _Scale, y: _Scale) -> list[str]:
    """The level of each piece as a line, and each step as a mark in its colour."""
    if not series.steps:
        return []
    edges = [0, *(s.at for s in series.steps), len(series.runs)]
    levels = [series.before_after(s)[0] for s in series.steps]
    levels.append(series.before_after(series.steps[-1])[1])
    parts = []
    for first, end, value in zip(edges[:-1], edges[1:], levels, strict=True):
        a, b = x(series.runs[first]), x(series.runs[end - 1])
        parts.append(
            f"<line x1={a:.1f} x2={b:.1f} y1={y(value):.1f} y2={y(value):.1f} "
            "stroke='#888' stroke-width=1.5 />"
        )
    for step in series.steps:
        colour = "#c0392b" if series.worse(step) else "#2e8b57"
        middle = (x(series.runs[step.at - 1]) + x(series.runs[step.at])) / 2
        parts.append(
            f"<line x1={middle:.1f} x2={middle:.1f} y1={_TOP} y2={_HEIGHT - _BOTTOM} "
            f"stroke='{colour}' stroke-dasharray='3 3'/>"
        )
    return parts


def spark(values: Sequence[float]) -> str:
    """A series in one line of text.

    >>> spark([0.0, 1.0, 0.5])
    '▁█▅'
    """
    low, high = min(values), max(values)
    if high == low:
        return "▄" * len(values)
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * (v - low) / (high - low)))] for v in values)


def _text(text: str) -> str:
    return html.escape(text, quote=True)
