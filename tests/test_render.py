"""Any text becomes HTML that can do nothing: Markdown, formulas and code as they should look, attacks as
text.

In: texts, kind and hostile. Out: promises about the HTML. Does not know: the page.
"""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfast.server import render as module
from deepfast.server.render import LANGUAGES, MAX_TEXT, code_css, render

TAGS = module._MARKDOWN_TAGS | module._MATH_TAGS | module._PLAIN_TAGS
ATTRIBUTES = set().union(*module._ATTRIBUTES.values()) | {"rel", "target"}
ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt&colon;alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "<javascript:alert(1)>",
    "![x](javascript:alert(1))",
    "![x](https://example.org/pixel.png)",
    '[x](https://example.org "\\" onmouseover=alert(1) ")',
    "<svg onload=alert(1)>",
    "<math><mtext></mtext><style><img src=x onerror=alert(1)></style></math>",
    "<sub onclick=alert(1)>x</sub>",
    "<sub",
    "$\\text{<img src=x onerror=alert(1)>}$",
    "$\\href{javascript:alert(1)}{x}$",
    '$\\color{red" onload="alert(1)}{x}$',
    "$\\unicode{x3c}script>alert(1)$",
    '```"><script>alert(1)</script>\nx\n```',
    "```html\n<script>alert(1)</script>\n```",
    "<div class=code-bar style='position:fixed'>x</div>",
    "<iframe src=//example.org></iframe><form action=//example.org><input></form>",
    "<!--><script>alert(1)</script>-->",
    "\x00<scr\x00ipt>alert(1)</script>",
]


class Parsed(HTMLParser):
    """All tags with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def harmless(html: str) -> None:
    """Only known tags and attributes, only links to the web or to mail."""
    for tag, attributes in Parsed(html).tags:
        assert tag in TAGS
        assert set(attributes) <= ATTRIBUTES
        assert re.match(r"(https?|mailto):|[^:]*$", attributes.get("href") or "")
        if tag == "a" and "href" in attributes:
            assert "noopener" in (attributes["rel"] or "")
        assert re.fullmatch(r"[\w -]*", attributes.get("class") or "")


@pytest.mark.parametrize("text", ATTACKS)
def test_attacks_do_nothing(text):
    html = render(text)
    harmless(html)
    assert "<img" not in html and "<script" not in html


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(st.text(max_size=20), st.sampled_from(ATTACKS), st.sampled_from("$*_`[]()<>|\\-\n#&~!")),
        max_size=12,
    )
)
def test_any_text_gives_harmless_html(pieces):
    harmless(render("".join(pieces)))


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="\\{}[]()^_&$abfrcsqtlei 12\n", max_size=60))
def test_any_formula_gives_mathml_or_its_source(latex):
    html = render(f"$${latex}$$")
    harmless(html)
    if "<math" not in html and latex.strip() and not set(latex) & set("$\n"):
        assert "math-source" in html or "$$" in html


def test_half_a_character_is_no_error():
    assert "?" in render("a\ud800b")


@pytest.mark.parametrize(
    "text",
    [
        "$" * 1_000_000,
        "$a" * (MAX_TEXT // 2),
        "- " * (MAX_TEXT // 2),
        ">" * MAX_TEXT,
        "[" * MAX_TEXT,
        "![" * (MAX_TEXT // 2),
        "*a **b " * (MAX_TEXT // 7),
        "\\[\n" * (MAX_TEXT // 3),
        "```c\n" + "\n" * 19_000 + "\n```",
        "```python\n" + ("(" * 400 + "\n") * 40 + "```",
        "$" + "{" * 1900 + "$",
        "$" + "\\frac{" * 300 + "$",
    ],
    ids=lambda text: f"{text[:6]!r}x{len(text)}",
)
def test_no_text_takes_long(text, monkeypatch):
    monkeypatch.setattr(module, "MAX_SECONDS", 0.4)
    began = time.thread_time()
    html = render(text)
    assert time.thread_time() - began < module.MAX_SECONDS + 2
    harmless(html)


def test_what_takes_too_long_is_shown_as_it_is(monkeypatch):
    monkeypatch.setattr(module, "MAX_SECONDS", 0.0)
    assert render("**a** <b>") == '<pre class="plain">**a** &lt;b&gt;</pre>'


def test_markdown_as_it_should_look():
    html = render(
        "# One\n\n~~no~~ **yes** `code` H<sub>2</sub>O\n\n| a | b |\n|:-:|--:|\n| 1 | 2 |\n\n1. x\n   - y\n"
    )
    assert (
        "<h3>One</h3>" in html and "<s>no</s> <strong>yes</strong> <code>code</code> H<sub>2</sub>O" in html
    )
    assert '<th class="center">a</th>' in html and '<td class="right">2</td>' in html
    assert html.index("<ol>") < html.index("<ul>")
    assert 'href="https://example.org"' in render("[x](https://example.org)")
    assert '<a href="https://example.org/a.png"' in render("![cat](https://example.org/a.png)")


@pytest.mark.parametrize("text", ["$x^2$", "\\(x^2\\)", "a $x^2$, b", "- \\(x^2\\)"])
def test_formulas_in_a_line(text):
    html = render(text)
    assert '<math alttext="x^2" display="inline">' in html and "<msup>" in html


@pytest.mark.parametrize(
    "text",
    ["$$x^2$$", "\\[x^2\\]", "\\[\nx^2\n\\]", "$$\nx^2\n$$", "so \\[x^2\\] is", "- a\n  \\[\n  x^2\n  \\]"],
)
def test_formulas_of_their_own(text):
    html = render(text)
    assert '<math alttext="x^2" display="block">' in html and 'class="formula"' in html


def test_a_list_in_brackets_is_one_formula():
    html = render("\\[\n- a\n= b\n\\]\n\nafter")
    assert "<ul>" not in html and html.count("<math") == 1 and "<p>after</p>" in html


@pytest.mark.parametrize("text", ["from $5 to $6", "\\$x\\$", "`$x$`", "```\n$x$\n```", "\\( \\)", "100$"])
def test_what_is_no_formula(text):
    assert "<math" not in render(text)


def test_a_formula_that_fails_shows_its_source():
    assert render("$\\frac{$") == '<p><code class="math-source">\\frac{</code></p>\n'


def test_code_has_colours_and_its_own_text():
    html = render('```python\nif x < 1:\n\tprint("<b>")  # no\n```')
    assert '<pre class="code" data-lang="python">' in html and '<span class="k">if</span>' in html
    inside = re.sub(r"<[^>]*>", "", html).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert inside == 'if x < 1:\n\tprint("<b>")  # no\n\n'
    assert "<span" not in render("```nothing-known\nx = 1\n```")


def test_every_language_has_a_lexer():
    for language in LANGUAGES:
        assert module._lexer(language) is not None, language


def test_colours_can_be_read_in_both_themes():
    grounds = ("f6f8f6", "10151a")  # of code blocks, as in turns.css

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = re.findall(r"\.code \.(\w+) .*light-dark\(#(\w{6}), #(\w{6})\)", code_css())
    assert len(pairs) > 40
    for name, *colours in pairs:
        for colour, ground in zip(colours, grounds, strict=True):
            high, low = sorted((light(colour), light(ground)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, f".{name} #{colour} on #{ground}"
