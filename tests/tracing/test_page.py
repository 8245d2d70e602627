"""The page of a trace, in a real browser: what it shows, how it answers, and what it never does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meteora_registry.runtime.tracing.page import render_page
from meteora_registry.schemas.trace import Trace
from support.browser import needs_browser, open_browser
from support.traces import make_trace, two_layer_trace

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

HOSTILE = "</script><img src=x onerror=\"document.documentElement.dataset.ran='yes'\">"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def open_page(browser: Chrome, folder: Path, trace: Trace) -> None:
    page = folder / "trace.html"
    page.write_text(render_page(trace), encoding="utf-8")
    browser.get(page.as_uri())
    assert console_of(browser) == []
    assert run(browser, "return document.documentElement.dataset.ready") == "true"


def console_of(browser: Chrome) -> list[Any]:
    return list(browser.get_log("browser"))


def run(browser: Chrome, script: str, *arguments: Any) -> Any:
    return browser.execute_script(script, *arguments)


def text_of(browser: Chrome, selector: str) -> str:
    return str(run(browser, "return document.querySelector(arguments[0]).innerText", selector))


def hover(browser: Chrome, selector: str, *, at: tuple[int, int] | None = None) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    element = browser.find_element(By.CSS_SELECTOR, selector)
    run(browser, "arguments[0].scrollIntoView({block: 'center'})", element)
    chain = ActionChains(browser)
    if at is None:
        chain.move_to_element(element).perform()
        return
    # The driver counts from the middle of what can be seen.
    size = element.size
    chain.move_to_element_with_offset(
        element, at[0] - size["width"] // 2, at[1] - size["height"] // 2
    ).perform()


def press(browser: Chrome, selector: str, *keys: str) -> None:
    from selenium.webdriver.common.by import By

    browser.find_element(By.CSS_SELECTOR, selector).send_keys(*keys)


def click(browser: Chrome, selector: str) -> None:
    from selenium.webdriver.common.by import By

    browser.find_element(By.CSS_SELECTOR, selector).click()


def test_page_names_nothing_outside_itself() -> None:
    page = render_page(two_layer_trace())
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link|<iframe| src=| href=", page)


def test_page_allows_only_what_it_wrote() -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', render_page(two_layer_trace()))
    assert policy is not None
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-\S{44}'; script-src 'sha256-\S{44}'; "
        r"base-uri 'none'; form-action 'none'",
        policy[1],
    )


def test_data_is_never_taken_for_a_place_to_fill() -> None:
    page = render_page(two_layer_trace(["{{ script }}", "{{ data }}", "x", "y"]))
    assert page.count('"use strict"') == 1
    assert page.count('"{{ data }}"') == 1


@needs_browser
def test_tokens_have_the_colour_and_letter_of_their_member(browser: Chrome, tmp_path: Path) -> None:
    open_page(browser, tmp_path, two_layer_trace())
    shown = run(
        browser,
        "return [...document.querySelectorAll('.token')].map((token) => [token.textContent,"
        " token.dataset.letter, getComputedStyle(token).backgroundColor, token.parentElement.id])",
    )
    assert shown == [
        ["SELECT", "A", "rgb(133, 160, 245)", "prompt"],
        [" hello", "B", "rgb(251, 232, 83)", "prompt"],
        ["!", "B", "rgb(251, 232, 83)", "answer"],
        [" bye", "-", "rgba(0, 0, 0, 0)", "answer"],
    ]


@needs_browser
def test_hover_shows_the_weights_and_leaving_hides_them(browser: Chrome, tmp_path: Path) -> None:
    open_page(browser, tmp_path, two_layer_trace())
    hover(browser, "#token-1")
    assert text_of(browser, "#tip").split("\n") == [
        "token 2 of 4, prompt, id 1",
        " hello",
        *("B", "chat", "83 %"),
        *("A", "sql", "17 %"),
    ]
    hover(browser, "h1")
    assert run(browser, "return document.getElementById('tip').hidden")


@needs_browser
def test_keyboard_reaches_every_token(browser: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, tmp_path, two_layer_trace())
    press(browser, "#token-0", Keys.ARROW_RIGHT)
    focused = "return [document.activeElement.id, document.activeElement.getAttribute('aria-label')]"
    assert run(browser, focused) == ["token-1", "\u201c hello\u201d: chat 83 %, sql 17 %"]
    assert run(browser, "return document.querySelectorAll('#prompt .token[tabindex=\"0\"]').length") == 1
    assert not run(browser, "return document.getElementById('tip').hidden")


@needs_browser
def test_chosen_member_leaves_its_own_tokens(browser: Chrome, tmp_path: Path) -> None:
    open_page(browser, tmp_path, two_layer_trace())
    click(browser, "#members button[data-member='1']")
    dim = "return [...document.querySelectorAll('.token')].map((token) => token.classList.contains('dim'))"
    assert run(browser, dim) == [True, False, False, True]
    click(browser, "#members button[data-member='1']")
    assert run(browser, dim) == [False] * 4


@needs_browser
def test_modules_that_are_not_chosen_are_not_counted(browser: Chrome, tmp_path: Path) -> None:
    open_page(browser, tmp_path, two_layer_trace())
    click(browser, "[data-kind='self_attn.v_proj']")
    label = "return document.getElementById('token-2').getAttribute('aria-label')"
    assert run(browser, label) == "\u201c!\u201d: sql 50 %, chat 50 %"
    click(browser, "[data-kind='self_attn.q_proj']")
    assert run(browser, "return document.querySelector(\"[data-kind='self_attn.q_proj']\").checked")


@needs_browser
def test_layer_and_token_view_tells_the_cell_under_the_pointer(browser: Chrome, tmp_path: Path) -> None:
    open_page(browser, tmp_path, two_layer_trace())
    hover(browser, "#grid-cells", at=(24, 24))
    assert text_of(browser, "#grid-cell") == "Layer 1, token 2, \u201c hello\u201d: chat 75 %, sql 25 %"
    pixel = "return [...document.getElementById('grid-cells').getContext('2d').getImageData(2, 2, 1, 1).data]"
    assert run(browser, pixel) == [133, 160, 245, 255]


@needs_browser
def test_layer_and_token_view_is_walked_with_the_keys(browser: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, tmp_path, two_layer_trace())
    press(browser, "#grid-cells", Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert text_of(browser, "#grid-cell") == "Layer 1, token 3, \u201c!\u201d: sql 50 %, chat 50 %"


@needs_browser
def test_map_of_layers_and_members_follows_the_chosen_tokens(browser: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    open_page(browser, tmp_path, two_layer_trace())
    rows = (
        "return [...document.querySelectorAll('#map tbody tr')].map((row) =>"
        " [...row.children].map((cell) => cell.textContent))"
    )
    assert run(browser, rows) == [["0", "34", "41", "25"], ["1", "44", "31", "25"]]
    Select(browser.find_element(By.ID, "map-tokens")).select_by_value("prompt")
    assert run(browser, rows) == [["0", "56", "44"], ["1", "63", "38"]]


@needs_browser
def test_text_from_the_model_does_nothing(browser: Chrome, tmp_path: Path) -> None:
    trace = make_trace(
        [[[(0, 1.0)]] * 4],
        [("lm_head", 0)],
        texts=[HOSTILE, "\u202egnol\x1b[2J", "<!--<script>", "\u2028'\"&amp;"],
        prompt=4,
        bundle=HOSTILE,
    )
    open_page(browser, tmp_path, trace)
    hover(browser, "#token-0")
    assert run(browser, "return [document.images.length, document.documentElement.dataset.ran ?? null]") == [
        0,
        None,
    ]
    texts = run(browser, "return [...document.querySelectorAll('.token')].map((token) => token.textContent)")
    assert texts == [HOSTILE, "\\u{202e}gnol\\u{1b}[2J", "<!--<script>", "\\u{2028}'\"&amp;"]
    assert console_of(browser) == []


@needs_browser
def test_page_may_load_and_run_nothing_else(browser: Chrome, tmp_path: Path) -> None:
    open_page(browser, tmp_path, two_layer_trace())
    refused = browser.execute_async_script(_INTRUSIONS)
    assert refused == ["connect-src", "img-src", "script-src-elem", "style-src-elem"]
    assert run(browser, "return document.documentElement.dataset.ran ?? null") is None
    # Messages of the browser about this page are not the next page's.
    console_of(browser)


# Puts into the page what must not work there, and gives back which rules refused it.
_INTRUSIONS = """
const done = arguments[arguments.length - 1];
const refused = new Set();
document.addEventListener("securitypolicyviolation", (event) => {
  refused.add(event.effectiveDirective);
  if (refused.size === 4) done([...refused].sort());
});
const add = (tag, change) => document.body.append(Object.assign(document.createElement(tag), change));
add("img", { src: "image.png" });
add("script", { textContent: "document.documentElement.dataset.ran = 'yes'" });
add("style", { textContent: "body { color: red }" });
fetch("other.json").catch(() => {});
"""


@needs_browser
def test_gate_that_is_not_fitted_is_said_to_be(browser: Chrome, tmp_path: Path) -> None:
    trace = two_layer_trace()
    for fitted in (True, False):
        open_page(browser, tmp_path, trace.model_copy(update={"gate_fitted": fitted}))
        assert run(browser, "return document.getElementById('warning').hidden") is fitted


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_is_legible_in_both_themes(browser: Chrome, tmp_path: Path, theme: str) -> None:
    members = [f"member-{index}" for index in range(30)]
    table = [[(index, 0.7), ((index + 1) % 30, 0.3)] for index in range(30)]
    trace = make_trace([table], [("model.layers.0.q", 0)], texts=["word"] * 30, prompt=15, members=members)
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        open_page(browser, tmp_path, trace)
        contrasts = run(browser, _CONTRASTS)
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(contrasts) > 100
    assert min(contrast for contrast, _ in contrasts) >= 4.5, sorted(contrasts)[:3]


# The contrast by WCAG of every element's own text with the nearest background behind it.
_CONTRASTS = """
const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
const luminance = (colour) => channels(colour).slice(0, 3).map((value) => value / 255)
  .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
  .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
const background = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if (channels(colour)[3] !== 0) return colour;
  }
  return "rgb(255, 255, 255)";
};
return [...document.body.querySelectorAll("*")]
  .filter((element) => !["SCRIPT", "OPTION", "NOSCRIPT"].includes(element.tagName))
  .filter((element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
  .map((element) => {
    const [a, b] = [luminance(getComputedStyle(element).color), luminance(background(element))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML.slice(0, 120)];
  });
"""


@needs_browser
def test_page_of_thousands_of_tokens_draws_itself(browser: Chrome, tmp_path: Path) -> None:
    tokens = 4000
    table = [[(token // 500 % 28, 0.6), ((token + 1) % 28, 0.4)] for token in range(tokens)]
    trace = make_trace(
        [table],
        [(f"model.layers.{layer}.mlp.up_proj", 0) for layer in range(30)],
        texts=["word "] * tokens,
        prompt=3000,
        members=[f"task-{index}" for index in range(28)],
    )
    open_page(browser, tmp_path, trace)
    hover(browser, "#grid-scroll", at=(8, 472))
    assert text_of(browser, "#grid-cell").startswith("Layer 29, token ")
    assert run(browser, "return document.querySelectorAll('.token').length") == tokens
