"""The outcome for programs: GitHub Actions annotations, JUnit XML, and JSON."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from typing import Any

from medbench.gate.reports import words
from medbench.gate.verdicts import Outcome, Verdict

SCHEMA = 1
# GitHub shows ten annotations of each kind and step; the summary holds the rest.
_ANNOTATIONS = 10
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def workflow_commands(outcome: Outcome) -> str:
    """Workflow commands that mark the job: an error for each regression, warnings for notices.

    Source: the page "Workflow commands for GitHub Actions" of GitHub's documentation.
    """
    errors = [(c.title, words.sentence(c)) for c in outcome.having(Verdict.REGRESSION)]
    errors += [(f"{t.title} {t.what}", t.message) for t in outcome.troubles if t.fatal]
    if outcome.exit_code and not errors:
        errors = [("medbench gate", outcome.headline)]
    warnings = [("medbench gate", text) for text in outcome.notices]
    warnings += [(f"{t.title} {t.what}", t.message) for t in outcome.troubles if not t.fatal]
    lines = [f"::error title={_property(t)}::{_data(m)}" for t, m in errors[:_ANNOTATIONS]]
    lines += [f"::warning title={_property(t)}::{_data(m)}" for t, m in warnings[:_ANNOTATIONS]]
    level = "error" if outcome.exit_code else "notice"
    if outcome.exit_code == 0 or len(errors) > _ANNOTATIONS:
        lines.append(f"::{level} title=medbench gate::{_data(outcome.headline)}")
    return "\n".join(lines)


def junit(outcome: Outcome) -> str:
    """JUnit XML: a test case for every comparison and every cell in trouble."""
    suite = ET.Element("testsuite", name="medbench gate")
    n = {"failures": 0, "errors": 0, "skipped": 0}
    for c in outcome.comparisons:
        case = ET.SubElement(suite, "testcase", classname=_xml(c.title), name=words.metric(c))
        text = _xml(words.sentence(c))
        if c.verdict is Verdict.REGRESSION:
            n["failures"] += 1
            ET.SubElement(case, "failure", message=text, type="regression").text = text
        elif c.verdict in (Verdict.CANNOT_TELL, Verdict.NOT_COMPARED):
            n["skipped"] += 1
            ET.SubElement(case, "skipped", message=text)
        else:
            ET.SubElement(case, "system-out").text = text
    for t in outcome.troubles:
        case = ET.SubElement(suite, "testcase", classname=_xml(t.title), name="cell")
        message = _xml(f"{t.what}: {t.message}")
        kind = "errors" if t.fatal else "skipped"
        n[kind] += 1
        ET.SubElement(case, kind.removesuffix("s") if t.fatal else kind, message=message)
    # Whatever makes the gate fail must fail the report too: a reader of it sees nothing else.
    whole = ET.SubElement(suite, "testcase", classname="medbench gate", name="verdict")
    if outcome.exit_code:
        n["failures"] += 1
        ET.SubElement(whole, "failure", message=_xml(outcome.headline), type="gate")
    else:
        ET.SubElement(whole, "system-out").text = _xml(outcome.headline)
    suite.set("tests", str(len(suite.findall("testcase"))))
    for key, count in n.items():
        suite.set(key, str(count))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def as_json(outcome: Outcome) -> str:
    """The whole outcome as JSON."""
    data: dict[str, Any] = dataclasses.asdict(outcome) | {"schema": SCHEMA}
    for c in data["comparisons"]:
        c["verdict"] = c["verdict"].value
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _xml(text: str) -> str:
    # XML 1.0 cannot hold control characters, not even escaped.
    return _CONTROL.sub("?", text)
