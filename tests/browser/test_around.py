"""What is around a conversation: columns side by side, the list, files, settings, help, languages, themes.

In: Chromium. Out: each of them works and survives a reload. Does not know: how it looks.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_page import answer, ask, finished

api = pytest.importorskip("playwright.sync_api", reason="pip install 'deepfast[browser]' to run these")
expect = api.expect


def titles(page: Any) -> list[str]:
    return page.locator("#conversations .open").all_inner_texts()


def menu(page: Any, title: str, item: str) -> None:
    """Open the menu of a conversation and choose."""
    page.get_by_label(f"Actions for “{title}”").click()
    page.locator("details.menu[open]").get_by_role("button", name=item, exact=True).click()


def test_one_question_several_settings_from_one_request(real, visit):
    page = visit(real)
    page.click("#compare-toggle")
    expect(page.locator(".column")).to_have_count(2)
    page.click("#add-column")
    page.locator(".column").nth(2).get_by_label("Thinking").select_option("on")
    page.locator(".column").nth(2).get_by_label("Budget").fill("16")
    page.locator(".column").nth(2).get_by_label("Temperature").fill("0.5")
    page.keyboard.press("Tab")
    sent: list[Any] = []
    page.on("request", lambda one: one.url.endswith("completions") and sent.append(one.post_data_json))
    ask(page, "What is 47 * 86?")
    expect(page.locator(".column .facts")).to_have_text([re.compile(r"\d tokens · .* tokens/s · .*")] * 3)
    expect(page.locator(".column").nth(0).locator(".markdown")).to_have_text("4042")
    expect(page.locator(".column").nth(2).locator("summary")).to_contain_text("ended by its budget")
    assert [request["variants"] for request in sent] == [
        [
            {"thinking": {"mode": "on"}},
            {"thinking": {"mode": "off"}},
            {"temperature": 0.5, "thinking": {"mode": "on", "budget": 16}},
        ]
    ]
    page.locator(".column").nth(1).get_by_role("button", name="Continue with this").click()
    expect(answer(page).locator(".branches")).to_contain_text("2/3")
    expect(answer(page).locator(".turn-label")).to_contain_text("Direct")
    page.reload()
    expect(page.locator("#conversations .open")).to_have_count(1)
    page.keyboard.press("Alt+c")
    expect(page.locator(".column")).to_have_count(3)


def test_several_models_with_their_costs(fake, visit):
    server = fake(models=("fake-thinker", "remote/other"))
    page = visit(server.url)
    page.click("#open-settings")
    page.get_by_label("Input price of remote/other").fill("1000")
    page.get_by_label("Output price of remote/other").fill("2000")
    page.keyboard.press("Escape")
    page.click("#compare-toggle")
    page.locator(".column").nth(1).get_by_label("Model").select_option("remote/other")
    ask(page, "hello")
    expect(page.locator(".column .markdown")).to_have_text(["Answer to: hello"] * 2)
    assert {body["model"] for body in server.state.asked} == {"fake-thinker", "remote/other"}
    # no thought in this column: 9 tokens of prompt and 2 of answer
    expect(page.locator(".column").nth(1).locator(".facts")).to_contain_text("$0.01")
    expect(page.locator(".column").nth(0).locator(".facts")).not_to_contain_text("$")
    page.get_by_role("button", name="Remove column 1").click()
    expect(page.locator(".column")).to_have_count(1)


def test_a_model_that_runs_elsewhere(with_remote, visit):
    page = visit(with_remote)
    expect(page.locator("#model")).to_have_value("far")
    expect(page.locator("#model option")).to_have_text("far (remote)")
    page.click("#compare-toggle")
    ask(page, "What is 47 * 86?")
    expect(page.locator(".column").nth(0).locator(".markdown")).to_have_text("4042")
    expect(page.locator(".column").nth(0).locator("summary")).to_contain_text("ended by itself")
    expect(page.locator(".column .facts")).to_have_text([re.compile(r"\d tokens · ")] * 2)


def test_a_thought_in_one_column_is_steered_alone(fake, visit):
    server = fake()
    page = visit(server.url)
    page.click("#compare-toggle")
    page.locator(".column").nth(1).get_by_label("Thinking").select_option("on")
    ask(page, "slow")
    page.locator(".column").nth(1).get_by_role("button", name="Answer now").click()
    expect(page.locator(".column").nth(1).locator("summary")).to_contain_text("ended by you")
    assert server.state.controls == [{"action": "end", "variant": 1}]
    page.keyboard.press("Escape")
    expect(page.locator("#send")).to_be_visible()


def test_conversations_are_kept_searched_renamed_deleted(fake, visit):
    page = visit(fake().url)
    for text in ("About apples", "About pears"):
        page.click("#new-chat")
        ask(page, text)
        finished(page)
    page.reload()
    expect(page.locator("#conversations .open")).to_have_text(["About pears", "About apples"])
    page.keyboard.press("Control+k")
    page.keyboard.type("answer to: about APP")
    expect(page.locator("#conversations .open")).to_have_text(["About apples"])
    page.fill("#search", "")
    page.get_by_role("button", name="About apples", exact=True).click()
    expect(answer(page).locator(".markdown")).to_have_text("Answer to: About apples")
    menu(page, "About apples", "Rename")
    page.fill("#rename-input", "Fruit")
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text("Fruit")
    menu(page, "About pears", "Delete")
    page.get_by_role("button", name="Cancel").click()
    menu(page, "About pears", "Delete")
    page.locator("#delete-dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#conversations .open")).to_have_text(["Fruit"])
    expect(page.locator("#new-chat")).to_be_focused()
    page.reload()
    expect(page.locator("#conversations .open")).to_have_text(["Fruit"])


def test_a_run_goes_on_while_another_conversation_is_shown(fake, visit):
    page = visit(fake().url)
    ask(page, "slow one")
    expect(answer(page).locator(".thought-text")).to_contain_text("step 2")
    page.keyboard.press("Alt+n")
    expect(page.locator("#send")).to_be_visible()
    ask(page, "quick one")
    finished(page)
    page.get_by_role("button", name="slow one", exact=True).click()
    expect(page.locator("#stop")).to_be_visible()
    page.keyboard.press("Alt+Enter")
    expect(answer(page).locator(".markdown")).to_have_text("Answer to: slow one")


def test_an_open_menu_stays_open_while_an_answer_is_stored(fake, visit):
    page = visit(fake().url)
    ask(page, "quick one")
    finished(page)
    page.click("#new-chat")
    ask(page, "slow one")
    expect(answer(page).locator(".thought-text")).to_contain_text("step 2")
    summary = page.locator("#conversations li", has_text="quick one").locator("summary")
    summary.click()
    page.wait_for_timeout(3500)  # it is stored every 3 s
    expect(page.get_by_role("button", name="Rename")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#conversations .menu[open]")).to_have_count(0)
    expect(summary).to_be_focused()


@pytest.mark.parametrize("kind", ["JSON", "Markdown"])
def test_a_file_brings_a_conversation_back(fake, visit, tmp_path: Path, kind):
    page = visit(fake().url)
    page.evaluate("localStorage.setItem('deepfast.settings', JSON.stringify({system: 'Be brief.'}))")
    page.reload()
    ask(page, "first <!-- deepfast:user -->\n<!-- deepfast:user -->\nmarkdown")
    finished(page)
    ask(page, "second")
    finished(page, 2)
    expect(answer(page).locator(".markdown")).to_have_text("Answer to: second")
    shown = page.locator("#turns").inner_text()
    with page.expect_download() as download:
        menu(page, page.locator("#title").inner_text(), f"Export as {kind}")
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    other = visit(fake().url)
    other.set_input_files("#import-file", file)
    expect(other.locator("#toast")).to_have_text("1 conversations imported")
    other.locator("#conversations .open").click()
    expect(other.locator(".question-text").first).to_contain_text("<!-- deepfast:user -->\nmarkdown")
    expect(other.locator("#system-note")).to_be_visible()
    expect(other.locator(".markdown h3")).to_have_text("Title")
    expect(other.locator(".thought-text").first).to_contain_text("step 6")
    if kind == "JSON":
        assert other.locator("#turns").inner_text() == shown
        with other.expect_download() as download:
            other.click("#export-all")
        assert len(json.loads(Path(download.value.path()).read_text())["conversations"]) == 1


def test_foreign_files_are_refused(fake, visit):
    page = visit(fake().url)
    empty = '{"format": "deepfast-conversations", "version": 1, "conversations": [{}]}'
    for number, text in enumerate(("not ours", "{", "{}", empty)):
        file = {"name": f"{number}.json", "mimeType": "application/json", "buffer": text.encode()}
        page.set_input_files("#import-file", file)
        expect(page.locator("#toast")).to_contain_text(f"{number}.json: this is no file of conversations")


def test_settings_are_sent_and_empty_ones_are_not(fake, visit):
    server = fake()
    page = visit(server.url)
    page.keyboard.press("Control+,")
    expect(page.locator("#set-temperature")).to_have_attribute("placeholder", "0.6 / 0.7")
    page.fill("#set-system", "Be brief.")
    page.fill("#set-temperature", "0.5")
    page.fill("#set-top_k", "1.5")
    page.keyboard.press("Tab")
    expect(page.locator("#sampling [aria-invalid=true]")).to_have_count(1)
    page.fill("#set-top_k", "20")
    page.fill("#set-seed", "7")
    page.keyboard.press("Escape")
    ask(page, "hello")
    finished(page)
    body = server.state.asked[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert {name: body[name] for name in ("temperature", "top_k", "seed")} == {
        "temperature": 0.5,
        "top_k": 20,
        "seed": 7,
    }
    assert not {"top_p", "min_p", "presence_penalty", "max_tokens", "thinking"} & set(body)
    page.reload()
    page.click("#open-settings")
    expect(page.locator("#set-seed")).to_have_value("7")
    page.click("#reset-sampling")
    expect(page.locator("#set-seed")).to_have_value("")


def test_languages_and_themes(fake, visit):
    page = visit(fake().url, color_scheme="dark")
    ask(page, "before")
    finished(page)
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.click("#open-settings")
    page.select_option("#set-theme", "light")
    assert page.evaluate(ground) != dark
    page.select_option("#set-language", "zh")
    expect(page.locator("#settings-title")).to_have_text("设置")
    expect(page.locator("#conversations .group")).to_have_text("今天")
    page.keyboard.press("Escape")
    page.reload()
    expect(page.locator("#new-chat")).to_have_text("新对话")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    assert page.evaluate(ground) != dark
    ask(page, "hello")
    finished(page)
    expect(answer(page).locator("summary")).to_contain_text("自然结束")


def test_both_languages_have_the_same_words(fake, visit):
    page = visit(fake().url)
    differ = """async () => {
        const {en} = await import('/page/words-en.js'), {zh} = await import('/page/words-zh.js');
        const places = (text) => (text.match(/\\{\\w+\\}/g) ?? []).sort().join();
        const keys = [...new Set([...Object.keys(en), ...Object.keys(zh)])];
        return keys.filter((key) => !en[key] || !zh[key] || places(en[key]) !== places(zh[key]));
    }"""
    assert page.evaluate(differ) == []
    used = set()
    folder = Path(__file__).parents[2] / "deepfast/server/page"
    for file in [*folder.glob("*.js"), folder / "index.html"]:
        used |= set(re.findall(r"""\bt\("(\w+)\"|data-i18n(?:-\w+)?="(\w+)\"""", file.read_text()))
    words = page.evaluate("async () => Object.keys((await import('/page/words-en.js')).en)")
    assert {key or other for key, other in used} <= set(words)


def test_help_lists_the_keys_and_focus_comes_back(fake, visit):
    page = visit(fake().url)
    page.focus("#open-help")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    expect(page.locator("#help dt")).to_have_count(13)
    page.keyboard.press("Escape")
    expect(page.locator("#open-help")).to_be_focused()
    page.keyboard.press("/")
    expect(page.locator("#input")).to_be_focused()


def test_everything_has_a_name_and_a_place(fake, visit):
    page = visit(fake().url)
    ask(page, "svg")
    finished(page)
    for role in ("banner", "navigation", "main"):
        expect(page.get_by_role(role)).to_have_count(1)
    unnamed = """() => [...document.querySelectorAll('button, input, select, textarea, iframe, summary')]
        .filter((e) => !(e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim() || e.title
            || e.getAttribute('aria-labelledby')))
        .map((e) => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(unnamed) == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


CONTRASTS = """() => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].map((part) => part / 255);
    };
    const over = ([r, g, b, a], under) => [r, g, b].map((part, i) => part * a + under[i] * (1 - a));
    const light = (colour) => colour
        .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
        .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
    const faint = [];
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        const visible = element.checkVisibility({checkOpacity: true});
        if (!own || !visible || element.closest('.hidden, :disabled, .off')) continue;
        const behind = [];
        for (let at = element; at; at = at.parentElement) {
            behind.unshift(getComputedStyle(at).backgroundColor);
        }
        const ground = behind.reduce((under, colour) => over(rgba(colour), under), [1, 1, 1]);
        const text = over(rgba(getComputedStyle(element).color), ground);
        const [low, high] = [light(text), light(ground)].sort((a, b) => a - b);
        const contrast = (high + 0.05) / (low + 0.05);
        if (contrast < 4.5) faint.push(`${element.textContent.trim().slice(0, 30)}: ${contrast.toFixed(2)}`);
    }
    return faint;
}"""


def test_all_text_can_be_read_in_both_themes(fake, visit):
    page = visit(fake(models=("fake-thinker", "remote/other")).url)
    page.allowed = ["400"]

    def check() -> None:
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            assert page.evaluate(CONTRASTS) == [], theme

    check()
    for text in ("markdown", "mistake", "svg", "slow"):
        ask(page, text)
        expect(page.locator(".answer").last.locator(".markdown, .notice, .steering").first).to_be_attached()
        page.keyboard.press("Escape") if text == "slow" else finished(page, page.locator(".answer").count())
    page.locator("#conversations .menu summary").click()
    check()
    page.keyboard.press("Escape")
    page.click("#compare-toggle")
    ask(page, "hello")
    expect(page.locator(".badge")).not_to_have_count(0)
    check()
    page.click("#open-settings")
    check()


def test_a_narrow_screen_has_the_list_behind_a_button(fake, visit):
    page = visit(fake().url, viewport={"width": 390, "height": 844})
    expect(page.locator("#sidebar")).to_be_hidden()
    page.click("#toggle-sidebar")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#sidebar")).to_be_hidden()
    ask(page, "markdown")
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
