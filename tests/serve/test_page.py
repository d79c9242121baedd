"""The page at / in headless Chromium: `make test-browser`.

POLYJAX_SCREENSHOTS=FOLDER keeps the pictures.
"""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from polyjax.inference.score_map import ScoreMap
from polyjax.serve import LiveIndex
from serving import QUERY, running, sentences, tiny_ranker

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `browser`)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]
CANDIDATES = [
    *dict.fromkeys(sentences(60, seed=7, longest=9)),
    "a long reply " + "about mountains and gardens by the river " * 5,
    "w" * 120,
    "<img src=x onerror=alert(1)> & <b>bold</b>",
]
WIDTHS, THEMES = (1280, 390), ("light", "dark")


@pytest.fixture(scope="module")
def ranker():
    return tiny_ranker("poly")


@pytest.fixture(scope="module")
def server(ranker):
    index = LiveIndex(ranker, ranker.index(CANDIDATES))
    with running(ranker, index=index, score_map=ScoreMap(slope=0.05)) as found:
        yield found


@pytest.fixture(scope="module")
def alone(ranker):
    """Without an index and without a map; with a key."""
    with running(ranker, api_keys=["s3cret"]) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Opened:
    """A page of a server in a fresh context, with all that it asked for and complained of.

    Args:
        browser: Chromium.
        url: of the page.
        width: of the window.
        theme: that the user prefers.
    """

    def __init__(self, browser, url: str, width: int = 1280, theme: str = "light"):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda line: self._heard(f"{line.type}: {line.text}", line.type))
        self.page.on("pageerror", lambda error: self._heard(str(error), "error"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)
        self.page.wait_for_load_state("networkidle")
        self.url = url

    def _heard(self, text: str, kind: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def say(self, text: str) -> None:
        """Say something, and wait for the reply."""
        turns = self.page.locator("#turns li").count()
        self.page.fill("#say", text)
        self.page.press("#say", "Enter")
        self.page.locator("#turns li").nth(turns + 1).wait_for()

    def close(self) -> None:
        """Close it; nothing was asked of others, and nothing complained of."""
        self.context.close()
        assert all(address.startswith(self.url) for address in self.asked), self.asked
        assert self.complaints == []


@pytest.fixture
def opened(browser, server):
    found = Opened(browser, server.url)
    yield found
    found.close()


def shown(page) -> list[str]:
    """The texts of the results."""
    return page.locator("#results .row > span:nth-child(2)").all_inner_texts()


def test_a_turn_gets_the_ten_best_with_scores_time_and_proof(opened, ranker):
    page = opened.page
    assert page.title() == "polyjax: tiny"
    assert re.fullmatch(r"poly-encoder · float32 · \d+ candidates", page.inner_text("#facts"))
    opened.say(QUERY)
    best = ranker.rank([QUERY], CANDIDATES, 10)
    assert shown(page) == [one.text.strip() for one in best]
    assert page.locator("#turns li").all_inner_texts() == [f"You\n{QUERY}", f"Model\n{best[0].text.strip()}"]
    status = page.inner_text("#status")
    assert re.search(r"the best 10 of \d+ · [\d.]+ ms · certified: no better one exists", status), status
    bars = page.eval_on_selector_all(
        "#results .track i", "bars => bars.map(bar => parseFloat(bar.style.width))"
    )
    numbers = [float(text.rstrip("%")) for text in page.locator("#results .score").all_inner_texts()]
    assert bars == numbers == sorted(bars, reverse=True) and len(bars) == 10
    assert page.evaluate("document.activeElement.id") == "say" and page.input_value("#say") == ""


def test_what_was_said_is_context_and_is_not_said_again(opened, ranker):
    page = opened.page
    opened.say("hello")
    first = shown(page)[0]
    with page.expect_request("**/search") as asked:
        opened.say(QUERY)
    assert json.loads(asked.value.post_data)["context"] == ["hello", first, QUERY]
    assert first not in shown(page)
    page.click("#reset")
    assert page.locator("#turns li").count() == 0 and shown(page) == []
    with page.expect_request("**/search") as asked:
        opened.say(QUERY)
    assert json.loads(asked.value.post_data)["context"] == [QUERY]


def test_an_answer_after_a_reset_is_not_shown(opened):
    """It belongs to the conversation before."""
    page, held = opened.page, []
    page.route("**/search", lambda route: held.append(route))
    page.fill("#say", "hello")
    page.press("#say", "Enter")
    page.wait_for_function("document.getElementById('send').disabled")
    page.click("#reset")
    assert page.is_enabled("#send")
    with page.expect_response("**/search"):
        held.pop().continue_()
    page.wait_for_timeout(200)
    assert page.locator("#turns li").count() == 0 and shown(page) == []
    page.unroute("**/search")
    opened.say(QUERY)
    assert page.locator("#turns li").count() == 2 and len(shown(page)) == 10


def test_a_click_shows_what_a_score_is_made_of(opened, ranker):
    page = opened.page
    opened.say(QUERY)
    row = page.locator("#results .row").nth(1)
    row.click()
    why = page.locator("#why-1")
    why.locator("table").wait_for()
    assert row.get_attribute("aria-expanded") == "true"
    text = shown(page)[1]
    found = ranker.explain([QUERY], text)
    assert f"Score {found.score:.3f} = sum of weight × product over 4 context vectors" in why.inner_text()
    parts = [float(cell.split()[0]) for cell in why.locator("td.share").all_inner_texts()]
    assert len(parts) == 4 and sum(parts) == pytest.approx(found.score, abs=0.004)
    shades = why.locator("dd").first.locator("span")
    assert shades.all_inner_texts() == found.tokens
    colours = shades.evaluate_all(
        "spans => spans.map(s => +(/[\\d.]+(?=\\)$)/.exec(s.style.backgroundColor)[0]))"
    )
    np.testing.assert_allclose(colours, 0.75 * found.reads[0] / found.reads[0].max(), atol=0.01)
    why.get_by_role("button", name="Say this instead").click()
    assert page.locator("#turns li").last.inner_text() == f"Model\n{text}"
    row.click()
    assert row.get_attribute("aria-expanded") == "false" and not why.is_visible()


def test_everything_can_be_done_with_the_keyboard(opened):
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0, "it is seen once it has the focus"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "say"
    page.keyboard.type("one line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and another")
    page.keyboard.press("Enter")
    page.locator("#turns li").nth(1).wait_for()
    assert page.locator("#turns li").first.inner_text() == "You\none line\nand another"
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.innerText"))
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring == "solid", f"the focus is not seen on {reached[-1]}"
        if page.evaluate("document.activeElement.className") == "row":
            break
    assert reached[:3] == ["send", "reset", "curl"]
    page.keyboard.press("Enter")
    page.locator("#why-0 table").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Say this instead"


def test_a_persona_comes_first_in_the_context(opened):
    page = opened.page
    page.click("text=Persona")
    page.fill("#persona", "i have two dogs\n\n i like rain ")
    with page.expect_request("**/search") as asked:
        opened.say(QUERY)
    persona = "your persona: i have two dogs\nyour persona: i like rain\n"
    assert json.loads(asked.value.post_data)["context"] == [persona + QUERY]
    # The model reads the last turns only; the persona is in the first of these.
    opened.say("second")
    with page.expect_request("**/search") as asked:
        opened.say("third")
    turns = page.evaluate("state.turns.map((turn) => turn.text)")[:-1]
    sent = json.loads(asked.value.post_data)["context"]
    n = page.evaluate("state.info.max_turns")
    assert len(turns) == 5 > n == len(sent) and sent == [persona + turns[-n], *turns[1 - n :]]


def test_the_request_as_a_command_of_the_shell(opened):
    page = opened.page
    page.click("#curl")
    assert page.inner_text("#problem") == "Say something first."
    opened.say('it\'s "quoted" $HOME `id`')
    page.click("#curl")
    page.wait_for_function("document.querySelector('#copied').textContent")  # the clipboard answers later
    assert page.inner_text("#copied") == "It was copied." and "ms" in page.inner_text("#status")
    command = page.input_value("#line")
    assert page.evaluate("navigator.clipboard.readText()") == command
    words = shlex.split(command)
    assert words[:3] == ["curl", "-s", f"{opened.url}/search"]
    body = json.loads(words[words.index("-d") + 1])
    assert body["context"] == ['it\'s "quoted" $HOME `id`']


def test_a_text_is_never_markup(opened, server):
    page = opened.page
    page.click("text=Candidates of your own")
    page.fill("#candidates", CANDIDATES[-1])
    opened.say("<script>alert(1)</script>")
    assert shown(page) == [CANDIDATES[-1]] and page.locator("#results img, #turns script").count() == 0


def test_without_an_index_candidates_of_ones_own_are_ranked_with_a_key(browser, alone, ranker):
    opened = Opened(browser, alone.url)
    page = opened.page
    assert "API key is missing" in page.inner_text("#problem") and page.locator("#key").is_visible()
    page.fill("#key", "s3cret")
    page.press("#key", "Tab")
    page.wait_for_function("document.getElementById('model').textContent == 'tiny'")
    assert not page.locator("#problem").is_visible() and page.locator("#candidates").is_visible()
    page.fill("#say", QUERY)
    page.press("#say", "Enter")
    page.wait_for_function("!document.getElementById('problem').hidden")
    assert "write candidates of your own" in page.inner_text("#problem")
    assert page.input_value("#say") == QUERY, "nothing is lost"
    page.fill("#candidates", "\n".join(CANDIDATES[:5]))
    opened.say(QUERY)
    assert shown(page) == [one.text for one in ranker.rank([QUERY], CANDIDATES[:5])]
    assert "no map to probabilities" in page.inner_text("#legend")
    page.click("#curl")
    assert "s3cret" not in page.input_value("#line") and "$POLYJAX_API_KEY" in page.input_value("#line")
    opened.complaints = [line for line in opened.complaints if "401" not in line]  # Chromium's own note
    opened.close()


def test_an_error_is_said_and_the_turn_can_be_sent_again(opened):
    page = opened.page
    page.route("**/search", lambda route: route.abort())
    page.fill("#say", QUERY)
    page.press("#say", "Enter")
    page.wait_for_function("!document.getElementById('problem').hidden")
    assert page.inner_text("#problem") == "The server does not answer."
    assert page.locator("#problem").get_attribute("role") == "alert"
    assert page.input_value("#say") == QUERY and page.locator("#turns li").count() == 0
    assert "Asking" not in page.inner_text("#status")
    page.unroute("**/search")
    opened.say(QUERY)
    assert len(shown(page)) == 10
    opened.complaints = [line for line in opened.complaints if "ERR_FAILED" not in line]


FAULTS = (Path(__file__).parent / "layout.js").read_text()
"""Gives the faults of the page that is shown, a line each."""


def keep(page, name: str) -> None:
    """A picture of the whole page, where they are wanted."""
    if folder := os.environ.get("POLYJAX_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_or_overlaps_and_all_can_be_read(browser, server, width, theme):
    opened = Opened(browser, server.url, width, theme)
    page = opened.page
    keep(page, f"start-{width}-{theme}")
    assert page.evaluate(FAULTS) == []
    page.click("text=Persona")
    page.click("text=API key")
    page.click("text=Candidates of your own")
    page.fill("#candidates", "\n".join(CANDIDATES[-14:]))
    opened.say(QUERY + " " + "w" * 80)
    page.locator("#results .row").first.click()
    page.locator("#why-0 table").wait_for()
    page.click("#curl")
    keep(page, f"talk-{width}-{theme}")
    assert page.evaluate(FAULTS) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 28)"
    assert dark == (theme == "dark")
    opened.close()


def test_a_fault_of_the_layout_is_found(opened):
    page = opened.page
    page.evaluate("document.getElementById('hint').style.width = '3000px'")
    page.evaluate("document.getElementById('keys').style.marginTop = '-40px'")
    page.evaluate("document.getElementById('status').style.color = '#bbb'")
    page.evaluate("document.querySelector('label[for=say]').removeAttribute('for')")
    found = " ".join(page.evaluate(FAULTS))
    assert all(kind in found for kind in ("beyond the edge", "overlap", "contrast", "no label"))


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_description_of_the_api(browser, server, width, theme):
    opened = Opened(browser, server.url, width, theme)
    page = opened.page
    page.click("text=API >> nth=0")
    page.wait_for_url("**/docs")
    page.locator("section.operation").nth(5).wait_for()
    keep(page, f"docs-{width}-{theme}")
    described = {line for line in page.locator("h2").all_inner_texts() if line != "Answers"}
    paths = server.ask("GET", "/openapi.json").json["paths"]
    assert described == {f"{m.upper()} {path}" for path, methods in paths.items() for m in methods}
    assert page.evaluate(FAULTS) == []
    opened.close()
