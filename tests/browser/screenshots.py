"""Writes the pictures of the documentation: python tests/browser/screenshots.py [FOLDER].

In: a real server with the bundled model, Chromium. Out: PNG files in both themes (in docs/images, if no other
folder is named); what the bundled model cannot say (Markdown, formulas, pictures) is an imported example that
says so. Does not know: whether they are pretty.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from playwright.sync_api import expect, sync_playwright  # noqa: E402
from serving import served  # noqa: E402

from deepfast import LLM  # noqa: E402

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
SIZES = {"": {"width": 1280, "height": 800}, "-phone": {"width": 390, "height": 780}}
EXAMPLE = r"""The area under $f(x) = x^2$ between $a$ and $b$ is

$$\int_a^b x^2 \, dx = \frac{b^3 - a^3}{3}$$

```python
def area(a: float, b: float) -> float:
    return (b**3 - a**3) / 3  # exact
```

```svg
<svg viewBox="0 0 320 150" xmlns="http://www.w3.org/2000/svg">
  <path d="M40 130 Q150 128 250 20 V130 Z" fill="#99d9ce"/>
  <path d="M40 130 Q150 128 250 20" fill="none" stroke="#0f766e" stroke-width="3"/>
  <path d="M20 130 H300 M40 145 V10" stroke="#445"/>
</svg>
```
"""


def conversation() -> str:
    """A file to import."""
    user = {"role": "user", "content": "An example of what answers may hold", "next": ["a"], "shown": 0}
    turn = {"role": "assistant", "content": EXAMPLE, "model": "an example, not generated", "next": []}
    made = {"title": "Formulas, code and pictures", "turns": {"u": user, "a": turn}, "first": ["u"]}
    return json.dumps({"format": "deepfast-conversations", "version": 1, "conversations": [made]})


def ask(page: Any, text: str, count: int = 1) -> None:
    """Ask, and wait for the answers."""
    page.fill("#input", text)
    page.press("#input", "Enter")
    expect(page.locator(".facts:visible:not(:empty)")).to_have_count(count)
    page.wait_for_selector("#send:visible")
    page.wait_for_timeout(700)


def main(folder: Path) -> None:
    """Every view in both themes."""
    folder.mkdir(parents=True, exist_ok=True)
    with LLM() as llm, served(llm) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        for theme in ("light", "dark"):
            for suffix, size in SIZES.items():
                context = browser.new_context(viewport=size, color_scheme=theme, locale="en-GB")
                page = context.new_page()
                page.goto(server.url)
                page.wait_for_selector("body[data-ready]")
                example = {
                    "name": "example.json",
                    "mimeType": "application/json",
                    "buffer": conversation().encode(),
                }
                page.set_input_files("#import-file", example)
                shoot(page, folder, f"{suffix}-{theme}")
                context.close()
        browser.close()


def shoot(page: Any, folder: Path, name: str) -> None:
    """The views of one page."""

    def picture(view: str) -> None:
        page.screenshot(path=folder / f"{view}{name}.png")

    phone = "phone" in name
    if not phone:
        for text in ("Sort these numbers: 12, 7, 30, 1", "How many r are in strawberry?"):
            ask(page, text)
            page.click("#new-chat")
    ask(page, "What is 47 * 86?")
    page.locator(".answer summary").last.click()
    page.wait_for_timeout(300)
    page.locator("#toast").evaluate("(toast) => { toast.hidden = true }")
    picture("chat")
    if not phone:
        page.get_by_role("button", name="Formulas, code and pictures", exact=True).click()
        page.frame_locator("iframe").locator("svg").wait_for()
        picture("answer")
        page.click("#new-chat")
    page.keyboard.press("Alt+c")
    page.click("#add-column")
    page.locator(".column").nth(2).get_by_label("Thinking").select_option("on")
    page.locator(".column").nth(2).get_by_label("Budget").fill("24")
    ask(page, "What is 38 * 67?", 3)
    picture("compare")
    if not phone:
        page.keyboard.press("Control+,")
        picture("settings")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parents[1] / "docs/images")
