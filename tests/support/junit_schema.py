"""The rules of JUnit XML as Jenkins' xUnit plugin checks them in its `junit-10.xsd`."""

from __future__ import annotations

from xml.etree import ElementTree

# Of each element: the attributes that it must have, those that it may have, and its children.
_REASON = (set[str](), {"type", "message"}, set[str]())
_TEXT = (set[str](), set[str](), set[str]())
ELEMENTS = {
    "testsuites": (set[str](), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"group", "time", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url"},
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "testcase": (
        {"name"},
        {"time", "classname", "group"},
        {"skipped", "error", "failure", "system-out", "system-err"},
    ),
    "failure": _REASON,
    "error": _REASON,
    "skipped": _REASON,
    "system-out": _TEXT,
    "system-err": _TEXT,
}
_HOLDS_TEXT = {"failure", "error", "skipped", "system-out", "system-err"}


def check_junit(text: str) -> None:
    """Check a document against the schema, and every count of a suite against its cases."""
    root = ElementTree.fromstring(text)
    assert root.tag == "testsuites"
    for element in root.iter():
        required, optional, children = ELEMENTS[element.tag]
        assert required <= set(element.keys()) <= required | optional, (element.tag, sorted(element.keys()))
        assert {child.tag for child in element} <= children
        assert element.tag in _HOLDS_TEXT or not (element.text or "").strip()
    for suite in root:
        names = [case.get("name") for case in suite]
        assert len(set(names)) == len(names)
        for count, tag in (
            ("tests", None),
            ("failures", "failure"),
            ("errors", "error"),
            ("skipped", "skipped"),
        ):
            found = len(suite) if tag is None else sum(case.find(tag) is not None for case in suite)
            assert suite.get(count) == str(found)
