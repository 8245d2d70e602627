"""A report as JUnit XML, the form that build servers count."""

from __future__ import annotations

from xml.etree import ElementTree as Xml

from ...schemas.finding import Finding
from ...schemas.quotation import escape
from ...schemas.report import AdapterReport, Outcome, Report


def format_junit(report: Report) -> str:
    """Return one suite per adapter, one case per finding; a finding against the purpose is a failure."""
    root = Xml.Element("testsuites", name="meteora-registry validate")
    for adapter in report.adapters:
        _add_suite(root, adapter, report)
    if report.together:
        _add_cases(_suite(root, "together"), "together", report.together, report)
    for suite in root:
        suite.set("tests", str(len(suite)))
        for kind in ("failure", "error", "skipped"):
            plural = {"failure": "failures", "error": "errors"}.get(kind, kind)
            suite.set(plural, str(sum(case.find(kind) is not None for case in suite)))
    Xml.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _suite(root: Xml.Element, name: str) -> Xml.Element:
    return Xml.SubElement(root, "testsuite", name=escape(name, limit=4096))


def _add_suite(root: Xml.Element, adapter: AdapterReport, report: Report) -> None:
    suite = _suite(root, adapter.name)
    name = escape(adapter.name, limit=4096)
    # The adapter itself is a case, so that a clean one is counted too.
    case = Xml.SubElement(suite, "testcase", classname=name, name=str(adapter.verdict or adapter.outcome))
    if adapter.error:
        Xml.SubElement(case, "error", message=escape(adapter.error, limit=4096))
    elif adapter.outcome is Outcome.INCONCLUSIVE:
        Xml.SubElement(case, "skipped", message="; ".join(adapter.unchecked))
    _add_cases(suite, name, adapter.findings, report)


def _add_cases(suite: Xml.Element, name: str, findings: tuple[Finding, ...], report: Report) -> None:
    for finding in findings:
        title = f"{finding.code} {finding.title} ({finding.place})"
        case = Xml.SubElement(suite, "testcase", classname=name, name=title)
        text = f"found {finding.found}, expected {finding.expected}; {finding.why}; {finding.remedy}"
        if report.counts_against(finding):
            Xml.SubElement(case, "failure", message=finding.title, type=finding.code).text = text
        else:
            Xml.SubElement(case, "system-out").text = text
