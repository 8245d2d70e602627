"""A report as JUnit XML, the form that build servers count.

Suites and cases have the same names in every run, whatever the outcome, so a server can follow one over time.
"""

from __future__ import annotations

from collections import Counter
from xml.etree import ElementTree as Xml

from ...schemas.report import Outcome
from .overview import Entry, Overview, ShownAdapter, describe

_PLURALS = {"failure": "failures", "error": "errors", "skipped": "skipped"}


def format_junit(overview: Overview) -> str:
    """Return one suite per adapter, one case per finding; a finding against the purpose is a failure."""
    root = Xml.Element("testsuites", name="meteora-registry validate")
    for adapter in overview.adapters:
        _add_suite(root, adapter)
    if overview.together:
        suite = Xml.SubElement(root, "testsuite", name="together")
        _add_cases(suite, "together", overview.together)
    for suite in root:
        suite.set("tests", str(len(suite)))
        for kind, plural in _PLURALS.items():
            suite.set(plural, str(sum(case.find(kind) is not None for case in suite)))
    for total in ("tests", "failures", "errors"):
        root.set(total, str(sum(int(suite.get(total, "0")) for suite in root)))
    Xml.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _add_suite(root: Xml.Element, adapter: ShownAdapter) -> None:
    suite = Xml.SubElement(root, "testsuite", name=adapter.path)
    # The adapter itself is a case, so that a clean one is counted too.
    case = Xml.SubElement(suite, "testcase", classname=adapter.path, name="inspection")
    if adapter.error:
        Xml.SubElement(case, "error", message=adapter.error)
    elif adapter.report.outcome is Outcome.INCONCLUSIVE:
        Xml.SubElement(case, "skipped", message="; ".join(adapter.report.unchecked))
    _add_cases(suite, adapter.path, adapter.entries)


def _add_cases(suite: Xml.Element, classname: str, entries: tuple[Entry, ...]) -> None:
    names: Counter[str] = Counter()
    for entry in entries:
        finding = entry.finding
        name = f"{finding.code} {finding.title} ({finding.place})"
        names[name] += 1
        unique = name if names[name] == 1 else f"{name} {names[name]}"
        case = Xml.SubElement(suite, "testcase", classname=classname, name=unique)
        text = f"{describe(finding)}; {finding.why}; {finding.remedy}"
        if entry.level == "error":
            Xml.SubElement(case, "failure", message=finding.title, type=finding.code).text = text
        else:
            Xml.SubElement(case, "system-out").text = text
