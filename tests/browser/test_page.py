"""The page answers, shows and steers thoughts: with the bundled model where it can, else with a played
server.

In: Chromium. Out: every feature of a conversation works by mouse and by key. Does not know: how it looks.
"""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest

api = pytest.importorskip("playwright.sync_api", reason="pip install 'deepfast[browser]' to run these")
expect = api.expect
expect.set_options(timeout=5000)


def ask(page: Any, text: str) -> None:
    """Type a question and send it by Enter."""
    page.fill("#input", text)
    page.press("#input", "Enter")


def answer(page: Any) -> Any:
    """The last answer on the page."""
    return page.locator(".answer").last


def finished(page: Any, count: int = 1) -> None:
    """Wait until nothing runs and so many answers are shown."""
    expect(page.locator(".answer")).to_have_count(count)
    expect(page.locator("#send")).to_be_visible()


def set_budget(page: Any, position: int) -> None:
    page.locator("#budget").evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})) }", position
    )


def test_an_answer_with_its_thought_and_its_numbers(real, visit):
    page = visit(real)
    expect(page.locator("#welcome")).to_be_visible()
    ask(page, "What is 47 * 86?")
    expect(answer(page).locator(".markdown")).to_have_text("4042")
    finished(page)
    expect(page.locator("#input")).to_be_focused()
    summary = answer(page).locator("summary")
    expect(summary).to_contain_text(re.compile(r"Thought.*\d+ tokens · .*s · ended by itself"))
    expect(answer(page).locator(".thought-text")).to_be_hidden()
    summary.click()
    expect(answer(page).locator(".thought-text")).to_contain_text("47")
    expect(answer(page).locator(".facts")).to_have_text(
        re.compile(r"\d+ tokens · [\d,.]+ tokens/s · first after .*prompt \d+")
    )
    expect(page.locator("#announcer")).to_have_text(re.compile("Answer complete"))
    expect(page.locator("#welcome")).to_be_hidden()


def test_mode_and_budget_of_the_next_answer(real, visit):
    page = visit(real)
    page.check("#mode-off", force=True)
    expect(page.locator("#budget")).to_be_disabled()
    ask(page, "What is 4 + 5?")
    finished(page)
    expect(answer(page).locator(".thought")).to_be_hidden()
    page.keyboard.press("Alt+t")
    page.keyboard.press("Alt+t")
    expect(page.locator("#mode-on")).to_be_checked()
    set_budget(page, 1)
    expect(page.locator("#budget-value")).to_have_text("16 tokens")
    ask(page, "What is 47 * 86?")
    finished(page, 2)
    expect(answer(page).locator("summary")).to_contain_text("ended by its budget")
    page.reload()
    expect(page.locator("#mode-on")).to_be_checked()
    expect(page.locator("#budget-value")).to_have_text("16 tokens")


def test_the_thought_goes_back_as_reasoning_content(fake, visit):
    server = fake()
    page = visit(server.url)
    ask(page, "one")
    finished(page)
    ask(page, "two")
    finished(page, 2)
    sent = server.state.asked[1]["messages"]
    assert [turn["role"] for turn in sent] == ["user", "assistant", "user"]
    assert sent[1]["reasoning_content"].startswith("step 1") and sent[1]["content"] == "Answer to: one"


def test_answer_now_and_think_more(fake, visit):
    server = fake()
    page = visit(server.url)
    ask(page, "slow")
    expect(answer(page).locator(".thought-text")).to_be_visible()  # live while it thinks
    expect(answer(page).locator(".thought-text")).to_contain_text("step 3")
    page.get_by_role("button", name="Think more").click()
    expect(page.locator("#announcer")).to_have_text("The thought goes on")
    page.get_by_role("button", name="Answer now").click()
    expect(answer(page).locator("summary")).to_contain_text("ended by you")
    expect(answer(page).locator(".markdown")).to_have_text("Answer to: slow")
    finished(page)
    assert server.state.controls == [{"action": "extend", "tokens": 256}, {"action": "end"}]
    expect(answer(page).locator(".thought-text")).to_be_hidden()  # folds itself for the answer


def test_shortcuts_steer_too(fake, visit):
    server = fake()
    page = visit(server.url)
    ask(page, "slow")
    expect(answer(page).locator(".steering")).to_be_visible()
    page.keyboard.press("Alt+m")
    page.keyboard.press("Alt+Enter")
    finished(page)
    assert [control["action"] for control in server.state.controls] == ["extend", "end"]


def test_mode_and_budget_act_on_the_running_thought(fake, visit):
    server = fake()
    page = visit(server.url)
    ask(page, "slow")
    expect(answer(page).locator(".thought-text")).to_contain_text("step 4")
    set_budget(page, 1)
    expect(answer(page).locator("summary")).to_contain_text("ended by its budget")
    finished(page)
    assert server.state.controls == [{"action": "budget", "budget": 16}]
    set_budget(page, 13)
    ask(page, "slow again")
    expect(answer(page).locator(".thought-text")).to_contain_text("step 2")
    page.check("#mode-off", force=True)
    expect(answer(page).locator("summary")).to_contain_text("ended by you")
    assert server.state.controls[-1] == {"action": "end"}
    finished(page, 2)


def test_a_budget_changed_before_the_thought_begins_holds_too(fake, visit):
    server = fake()
    page = visit(server.url)
    ask(page, "slow late")
    expect(answer(page).locator(".waiting")).to_be_visible()
    set_budget(page, 1)
    expect(answer(page).locator("summary")).to_contain_text("ended by its budget")
    assert {"action": "budget", "budget": 16} in server.state.controls
    finished(page)


def test_stop_by_key_and_by_button_keeps_what_was_said(fake, visit):
    page = visit(fake().url)
    for number, stop in enumerate((lambda: page.keyboard.press("Escape"), lambda: page.click("#stop")), 1):
        ask(page, "slow")
        expect(answer(page).locator(".thought-text")).to_contain_text("step 2")
        stop()
        finished(page, number)
        expect(answer(page).locator(".notice")).to_have_text("Stopped.")
        expect(answer(page).locator(".thought")).to_be_visible()


def test_retry_edit_and_branches(real, visit):
    page = visit(real)
    ask(page, "What is 2 + 3?")
    finished(page)
    answer(page).get_by_role("button", name="Try again").click()
    expect(answer(page).locator(".branches")).to_contain_text("2/2")
    finished(page)
    page.locator(".question").hover()
    page.get_by_role("button", name="Edit").click()
    page.keyboard.press("Control+A")
    page.keyboard.type("What is 20 + 30?")
    page.keyboard.press("Enter")
    expect(answer(page).locator(".markdown")).to_have_text("50")
    finished(page)
    expect(page.locator(".question .branches")).to_contain_text("2/2")
    page.locator(".question").get_by_role("button", name="Version before").click()
    expect(page.locator(".question-text")).to_have_text("What is 2 + 3?")
    expect(answer(page).locator(".branches")).to_contain_text("2/2")
    answer(page).get_by_role("button", name="Version before").click()
    expect(answer(page).locator(".branches")).to_contain_text("1/2")
    page.press("#input", "ArrowUp")
    expect(page.locator(".edit-text")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#input")).to_be_focused()


def test_copy(fake, visit):
    page = visit(fake().url)
    ask(page, "markdown")
    finished(page)
    read = "navigator.clipboard.readText()"
    answer(page).get_by_role("button", name="Copy the answer").click()
    expect(page.locator("#toast")).to_have_text("Copied")
    assert page.evaluate(read).startswith("# Title\n\nText with **bold**")
    answer(page).get_by_role("button", name="Copy the code").click()
    page.wait_for_function(f"{read}.then((text) => text.startsWith('def f'))")
    page.locator(".question").hover()
    page.get_by_role("button", name="Copy the question").click()
    page.wait_for_function(f"{read}.then((text) => text === 'markdown')")


def test_markdown_is_rendered_and_scripts_are_text(fake, visit):
    page = visit(fake().url)
    ask(page, "markdown")
    finished(page)
    shown = answer(page).locator(".markdown")
    expect(shown.locator("h3")).to_have_text("Title")
    expect(shown.locator("math msup")).to_have_count(1)
    expect(shown.locator("td.right")).to_have_text("1")
    expect(shown.locator("pre.code .k").first).to_have_text("def")
    expect(shown).to_contain_text("<script>")
    assert page.title() == "markdown – Deepfast"


@pytest.mark.parametrize("kind", ["svg", "html"])
def test_previews_can_do_no_harm(fake, visit, kind):
    page = visit(fake().url)
    page.allowed = ["Content Security Policy", "/leak"]  # what the preview tries in vain
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    ask(page, kind)
    finished(page)
    frame = page.frame_locator(".preview iframe")
    if kind == "svg":
        expect(frame.locator("circle")).to_be_visible()
    else:
        expect(frame.locator("h1")).to_have_text("Static")
        page.get_by_role("button", name="Run scripts").click()
        expect(frame.locator("h1")).to_have_text("Scripted")
        inner = next(frame for frame in page.frames if "preview-scripts" in frame.url)
        assert inner.evaluate("origin") == "null"
        reach = "() => { try { return String(parent.document.title) } catch (e) { return e.name } }"
        assert inner.evaluate(reach) == "SecurityError"
        assert (
            inner.evaluate("() => { try { localStorage; return 1 } catch (e) { return e.name } }")
            == "SecurityError"
        )
        inner.evaluate("() => { location.href = 'http://127.0.0.1:9/leak' }")
        page.wait_for_timeout(200)
    assert not [url for url in asked if "leak" in url and not url.startswith("chrome-error")]
    page.get_by_role("button", name="Source").click()
    expect(page.locator("pre.code")).to_be_visible()
    expect(page.locator(".preview")).to_be_hidden()


def test_a_preview_opens_no_connection(fake, visit):
    """Requests are blocked by the policy; but a browser may connect before it asks the policy."""
    hits = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        at = f"http://127.0.0.1:{listener.getsockname()[1]}"
        body = f"""<p id="t">shown</p><meta http-equiv="refresh" content="0;url={at}/refresh">
            <iframe src="{at}/iframe"></iframe><img src="{at}/img"><object data="{at}/object"></object>
            <link rel="preconnect" href="{at}">
            <style>@import "{at}/css"; p {{ background: url({at}/bg) }}</style>
            <template shadowrootmode="open"><iframe src="{at}/shadow"></iframe></template>
            <svg><image href="{at}/image"/><a href="{at}/a"><text>x</text></a></svg>"""
        server = fake()
        server.state.scenes["network"] = f"```html\n{body}\n```\n"
        page = visit(server.url)
        page.allowed = ["Content Security Policy"]
        ask(page, "network")
        expect(page.frame_locator(".preview iframe").locator("#t")).to_be_visible()
        for _ in range(5):
            try:
                listener.accept()[0].close()
                hits.append(1)
            except TimeoutError:
                page.wait_for_timeout(50)
    assert not hits


def test_busy_counts_down_and_tries_again(fake, visit):
    server = fake()
    page = visit(server.url)
    page.allowed = ["429"]
    server.state.busy = 2
    ask(page, "busy")
    expect(answer(page).locator(".notice")).to_contain_text("busy. Trying again in 2 s")
    page.get_by_role("button", name="Try now").click()
    expect(answer(page).locator(".notice")).to_contain_text("in 1 s")
    expect(answer(page).locator(".markdown")).to_have_text("Answer to: busy")
    finished(page)
    assert len(server.state.asked) == 3
    server.state.busy = 9
    ask(page, "busy")
    page.get_by_role("button", name="Cancel").click()
    finished(page, 2)


def test_an_error_says_what_and_offers_another_try(fake, visit):
    page = visit(fake().url)
    page.allowed = ["400"]
    ask(page, "mistake")
    notice = answer(page).locator(".notice")
    expect(notice).to_contain_text("the prompt has 9 tokens, and at most 8 fit.")
    expect(notice).to_have_attribute("role", "alert")
    finished(page)
    notice.get_by_role("button", name="Try again").click()
    expect(answer(page).locator(".branches")).to_contain_text("2/2")


def test_disconnected_and_back(fake, visit):
    page = visit(fake().url)
    page.allowed = ["ERR_"]
    ask(page, "long cut")
    expect(answer(page).locator(".notice")).to_contain_text("connection was lost")
    expect(answer(page).locator(".markdown")).to_have_text("Answer to: l")
    page.route("**/*", lambda route: route.abort("connectionrefused"))
    ask(page, "hello")
    expect(page.locator("#banner")).to_contain_text("cannot be reached")
    page.unroute("**/*")
    page.locator("#banner").get_by_role("button", name="Try again").click()
    expect(page.locator("#banner")).to_be_hidden()
    answer(page).locator(".notice").get_by_role("button", name="Try again").click()
    expect(answer(page).locator(".markdown")).to_have_text("Answer to: hello")


def test_loading_is_shown_until_the_model_is_there(fake, visit):
    server = fake()
    server.state.loading = 1
    page = visit(server.url)
    page.allowed = ["503"]
    expect(page.locator("#banner")).to_contain_text("being loaded")
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("#model")).to_have_value("fake-thinker")


def test_a_server_with_keys_asks_for_one(fake, visit):
    page = visit(fake(keys=("right",)).url)
    page.allowed = ["401"]
    for key in ("wrong", "right"):
        expect(page.locator("#key-dialog")).to_be_visible()
        expect(page.locator("#key-problem")).to_be_visible(visible=key == "right")
        page.fill("#key-input", key)
        page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#model")).to_have_value("fake-thinker")
    ask(page, "hello")
    expect(answer(page).locator(".markdown")).to_have_text("Answer to: hello")


def test_shift_enter_is_a_new_line_and_an_example_fills_the_box(fake, visit):
    page = visit(fake().url)
    page.click(".example >> nth=1")
    expect(page.locator("#input")).to_have_value("Sort these numbers: 12, 7, 30, 1")
    page.press("#input", "Shift+Enter")
    assert page.input_value("#input").endswith("\n")
    page.fill("#input", "   ")
    page.press("#input", "Enter")
    expect(page.locator(".turn")).to_have_count(0)
