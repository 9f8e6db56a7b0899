"""Text of a model -> safe HTML: Markdown, LaTeX as MathML, code in colours.

In: any text at all, whoever wrote it. Out: HTML that holds no script, no style, no image, no foreign class.
Total and bounded: what is too long, takes too long or breaks a library comes back as the plain text it is.
Does not know: HTTP, conversations, the page around it.
"""

from __future__ import annotations

import html
import re
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import nh3
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import lex
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.styles import get_style_by_name
from pygments.token import STANDARD_TYPES, Whitespace
from pygments.util import ClassNotFound

MAX_TEXT = 100_000  # characters; an answer of 25,000 tokens
MAX_CODE = 20_000  # characters of one code block in colours
MAX_CODE_LINE = 500  # characters of a line in it, and of a run of blanks: what one regular expression may see
MAX_FORMULA = 2_000  # characters
MAX_SECONDS = 2.0  # of processor time for one text

_PLAIN_TAGS = {"br", "kbd", "mark", "sub", "sup"}  # HTML that models write, and that can do nothing
_LONG_LINE = re.compile(rf"[^\n]{{{MAX_CODE_LINE + 1}}}|\s{{{MAX_CODE_LINE // 5}}}")
_PLAIN_TAG = re.compile(rf"</?({'|'.join(sorted(_PLAIN_TAGS))})\s*/?>")
_MARKDOWN_TAGS = {
    *("a", "blockquote", "code", "del", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s"),
    *("div", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
_MATH_TAGS = {
    *(
        "math",
        "menclose",
        "merror",
        "mfrac",
        "mi",
        "mmultiscripts",
        "mn",
        "mo",
        "mover",
        "mpadded",
        "mphantom",
    ),
    *("mprescripts", "mroot", "mrow", "ms", "mspace", "msqrt", "mstyle", "msub", "msubsup", "msup", "mtable"),
    *("mtd", "mtext", "mtr", "munder", "munderover"),
}
_MATH_ATTRIBUTES = {
    *("accent", "accentunder", "columnalign", "columnlines", "columnspacing", "depth", "display"),
    *("displaystyle", "fence", "form", "height", "largeop", "linethickness", "lspace", "mathvariant"),
    *("maxsize", "minsize", "movablelimits", "notation", "rowlines", "rowspacing", "rspace", "scriptlevel"),
    *("separator", "stretchy", "symmetric", "voffset", "width"),
}
_ATTRIBUTES: dict[str, set[str]] = {tag: set(_MATH_ATTRIBUTES) for tag in _MATH_TAGS}
_ATTRIBUTES["math"] |= {"alttext"}
# Classes are safe to keep: no tag of the text itself reaches the sanitiser with an attribute.
_ATTRIBUTES |= {tag: {"class"} for tag in ("code", "div", "span", "td", "th")}
_ATTRIBUTES |= {"a": {"href", "title"}, "ol": {"start"}, "pre": {"class", "data-lang"}}

# A lexer is regular expressions over hostile text: only those that people ask for, each tried in the tests.
LANGUAGES = frozenset(
    "bash c c++ cmake cpp cs csharp css csv dart diff docker dockerfile go golang graphql haskell html "
    "ini java javascript js json jsx julia kotlin latex lua markdown matlab md nginx objc ocaml perl "
    "php powershell proto protobuf py python python3 r rb rs ruby rust scala scheme sh shell sql svg "
    "swift tex toml ts tsx typescript vim xml yaml yml zig zsh".split()
)
_DARKER = {"aa22ff": "8b1fd6"}  # a colour too faint to read on the ground of code blocks
_OTHER_NAMES = {"jsx": "javascript", "tsx": "typescript", "svg": "xml", "csv": "text", "proto": "protobuf"}


class _TooLong(Exception):
    """The time for one text is used up."""


def render(text: str, seconds: float | None = None) -> str:
    """HTML of `text`. Never raises, whatever the text is; what cannot be rendered, or not within so many
    seconds of processor time (MAX_SECONDS for None), is shown as it is."""
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair has no place in a page
    if len(text) > MAX_TEXT:
        return _plain(text)
    try:
        deadline = time.thread_time() + (MAX_SECONDS if seconds is None else seconds)
        return _clean(_markdown().render(text, {"deadline": deadline}))
    except Exception:  # three libraries parse hostile text here, and an answer must be shown in any case
        return _plain(text)


def code_css() -> str:
    """The style sheet of code colours, for light and dark."""
    light, dark = get_style_by_name("default"), get_style_by_name("github-dark")
    lines = ["/* The colours of code. Made by server/render.py from two styles of Pygments. */"]
    for kind, name in STANDARD_TYPES.items():
        looks = [style.style_for_token(kind) for style in (light, dark)]
        if not name or kind in Whitespace or not any(look["color"] for look in looks):
            continue
        colours = [look["color"] or plain for look, plain in zip(looks, ("24292f", "e6edf3"), strict=True)]
        colours = [_DARKER.get(colour.lower(), colour) for colour in colours]
        rules = f"color: light-dark(#{colours[0]}, #{colours[1]});"
        rules += " font-style: italic;" if any(look["italic"] for look in looks) else ""
        rules += " font-weight: 600;" if any(look["bold"] for look in looks) else ""
        lines.append(f".code .{name} {{ {rules} }}")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return f'<pre class="plain">{html.escape(text, quote=False)}</pre>'


def _clean(dirty: str) -> str:
    return nh3.clean(
        dirty,
        tags=_MARKDOWN_TAGS | _MATH_TAGS | _PLAIN_TAGS,
        attributes=_ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


@cache
def _markdown() -> MarkdownIt:
    md = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    md.disable("html_block")  # html_inline sees all tags, and renders those in _PLAIN_TAGS only
    dollarmath_plugin(
        md,
        allow_labels=False,
        allow_space=False,
        allow_digits=False,
        allow_blank_lines=False,
        double_inline=True,
    )
    md.inline.ruler.before("escape", "bracket_math", _bracket_math)
    md.block.ruler.before("fence", "bracket_math_block", _bracket_math_block)
    md.inline.ruler.before("text", "deadline", _inline_deadline)
    md.block.ruler.before("table", "deadline", _block_deadline)
    md.core.ruler.push("adapt", _adapt)
    for name, rule in _RENDERERS.items():
        md.add_render_rule(name, rule)
    return md


def _check(env: Mapping[str, Any]) -> None:
    if time.thread_time() > env["deadline"]:
        raise _TooLong


def _inline_deadline(state: StateInline, silent: bool) -> bool:
    _check(state.env)
    return False


def _block_deadline(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    _check(state.env)
    return False


def _bracket_math(state: StateInline, silent: bool) -> bool:
    r"""\( ... \) and \[ ... \] inside a paragraph."""
    opening = state.src[state.pos : state.pos + 2]
    if opening not in (r"\(", r"\["):
        return False
    closing = r"\)" if opening == r"\(" else r"\]"
    end = state.src.find(closing, state.pos + 2, min(state.posMax, state.pos + MAX_FORMULA))
    if end < 0 or not state.src[state.pos + 2 : end].strip():
        return False
    if not silent:
        token = state.push("math_inline" if opening == r"\(" else "math_inline_double", "math", 0)
        token.content = state.src[state.pos + 2 : end]
        token.markup = opening
    state.pos = end + 2
    return True


def _bracket_math_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    r"""Lines from one that begins with \[ to one that ends with \]: no list or heading inside."""
    begin = state.bMarks[start] + state.tShift[start]
    if state.is_code_block(start) or not state.src.startswith(r"\[", begin):
        return False
    for line in range(start, min(end, start + 60)):
        text = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].rstrip()
        if line > start and (not text or state.sCount[line] < state.blkIndent):
            return False
        if text.endswith(r"\]"):
            break
    else:
        return False
    content = state.getLines(start, line + 1, state.tShift[start], False).strip()[2:-2]
    if r"\]" in content:
        return False
    if not silent:
        token = state.push("math_block", "math", 0)
        token.block, token.content, token.map = True, content, [start, line + 1]
    state.line = line + 1
    return True


def _adapt(state: StateCore) -> None:
    """Headings below those of the page, alignment as classes, pictures as links: a picture from elsewhere
    would tell its server that it was looked at."""
    for token in state.tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 2, 6)}"
        elif token.type in ("th_open", "td_open") and "style" in token.attrs:
            token.attrs["class"] = str(token.attrs.pop("style")).removeprefix("text-align:")


Tokens = Sequence[Token]


def _render_image(self: RendererHTML, tokens: Tokens, i: int, options: Any, env: Any) -> str:
    source, label = str(tokens[i].attrs.get("src", "")), tokens[i].content or "image"
    return f'<a href="{html.escape(source)}">{html.escape(label)}</a>'


def _render_tag(self: RendererHTML, tokens: Tokens, i: int, options: Any, env: Any) -> str:
    tag = tokens[i].content
    return tag if _PLAIN_TAG.fullmatch(tag) else html.escape(tag)


def _render_table(self: RendererHTML, tokens: Tokens, i: int, options: Any, env: Any) -> str:
    return '<div class="table"><table>'


def _render_table_end(self: RendererHTML, tokens: Tokens, i: int, options: Any, env: Any) -> str:
    return "</table></div>"


def _render_code(self: RendererHTML, tokens: Tokens, i: int, options: Any, env: Any) -> str:
    _check(env)
    token = tokens[i]
    language = (token.info.split() or [""])[0].lower()[:30]
    code = _coloured(token.content, language, env)
    return f'<pre class="code" data-lang="{html.escape(language)}"><code>{code}</code></pre>\n'


def _render_formula(self: RendererHTML, tokens: Tokens, i: int, options: Any, env: Any) -> str:
    _check(env)
    token, inline = tokens[i], tokens[i].type == "math_inline"
    formula = _mathml(token.content.strip(), inline)
    if token.type == "math_block":
        return f'<div class="formula">{formula}</div>\n'
    return formula if inline else f'<span class="formula">{formula}</span>'


_RENDERERS = {
    "image": _render_image,
    "html_inline": _render_tag,
    "table_open": _render_table,
    "table_close": _render_table_end,
    "fence": _render_code,
    "code_block": _render_code,
    "math_inline": _render_formula,
    "math_inline_double": _render_formula,
    "math_block": _render_formula,
}


def _mathml(latex: str, inline: bool) -> str:
    """MathML, or the source where the formula is not understood."""
    source = html.escape(latex)
    if len(latex) <= MAX_FORMULA:
        try:
            made: str = convert(latex, display="inline" if inline else "block")
            return made.replace("<math ", f'<math alttext="{source}" ', 1)
        except (
            Exception
        ):  # it raises whatever its parser trips over: KeyError, IndexError, RecursionError, ...
            pass
    return f'<code class="math-source">{source}</code>'


def _coloured(code: str, language: str, env: Mapping[str, Any]) -> str:
    lexer = _lexer(language) if len(code) <= MAX_CODE else None
    if lexer is None or _LONG_LINE.search(code):
        return html.escape(code)
    parts = []
    for kind, text in lex(code, lexer):
        _check(env)
        name = STANDARD_TYPES.get(kind, "")
        while not name and kind.parent is not None:
            kind = kind.parent
            name = STANDARD_TYPES.get(kind, "")
        shown = html.escape(text, quote=False)
        parts.append(f'<span class="{name}">{shown}</span>' if name and text.strip() else shown)
    return "".join(parts)


@cache
def _lexer(language: str) -> Lexer | None:
    if language not in LANGUAGES:
        return None
    try:
        return get_lexer_by_name(_OTHER_NAMES.get(language, language), stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
