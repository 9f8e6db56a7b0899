"""Masks of grammars: they allow what fits, all of it and nothing else, and what they lead to is valid.

In: schemas, regexes, Lark grammars and tools, with small and large vocabularies. Out: texts drawn at random
from the masks alone. Does not know: logits, a model.
"""

import json
import random
import re
import threading
from functools import cache
from pathlib import Path

import pytest
import text_fixtures
from hypothesis import given
from hypothesis import strategies as st

from deepfast.text.grammar import Grammars
from deepfast.text.tokenizer import Tokenizer
from deepfast.text.tool_calls import ToolCallParser
from deepfast.types import Grammar, UsageError

BUNDLED = Path(__file__).resolve().parents[1] / "deepfast" / "bundled"
CLOSING = ('"', "}\n", "}", "]", ")", ":", ",", "1")  # what to prefer when a text should come to its end
WORDS = ["naïve", "東京", "😀 ok", 'a "quoted" \\ one', "tab\tnewline\n", ""]
TRIP = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "units": {"enum": ["celsius", "fahrenheit", None]},
        "legs": {
            "type": "array",
            "items": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
            "minItems": 1,
            "maxItems": 3,
        },
    },
    "required": ["city", "days", "units"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "boolean"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            },
            "required": ["value"],
            "additionalProperties": False,
        }
    },
}
SUM = """
start: term (("+" | "-") term)*
term: NUMBER | "(" start ")"
NUMBER: /[0-9]{1,3}/
"""


@cache
def bundled():
    return Tokenizer.from_dir(BUNDLED)


@cache
def grammars(name):
    """Grammars of a vocabulary; an answer ends with <|im_end|>."""
    tokenizer = {"bundled": bundled, "qwen": text_fixtures.qwen, "tiny": text_fixtures.tiny}[name]()
    return Grammars(tokenizer, tokenizer.num_ids, frozenset({tokenizer.control_id("<|im_end|>")}))


def tokenizer_of(name):
    return grammars(name)._tokenizer


def ids_of(mask):
    """The ids that a mask allows."""
    return {
        byte * 8 + bit for byte, value in enumerate(mask) if value for bit in range(8) if value >> bit & 1
    }


def allows(mask, token):
    """Is this id allowed?"""
    return bool(mask[token >> 3] >> (token & 7) & 1)


def pick(rng, mask):
    """One allowed id: quickly by chance, or else from all."""
    for _ in range(64):
        token = rng.randrange(len(mask) * 8)
        if allows(mask, token):
            return token
    return rng.choice(sorted(ids_of(mask)))


def draw(compiled, tokenizer, ends, seed, limit=40):
    """A text drawn from the masks; after `limit` tokens it is led to its end."""
    rng, matcher, text = random.Random(seed), compiled.matcher(), b""
    closing = [tokenizer.encode(piece)[0] for piece in CLOSING]
    for step in range(limit * 10):
        mask = matcher.mask()
        assert {token for token in tokenizer.control_ids if allows(mask, token)} == (
            ends if matcher.accepting else frozenset()
        ), text
        over = step >= limit or rng.random() < 0.2
        rest = bytearray(mask)
        for token in ends:
            rest[token >> 3] &= ~(1 << (token & 7))
        if matcher.accepting and (over or not any(rest)):
            return text.decode()
        assert any(rest), text
        token = next((token for token in closing if over and allows(rest, token)), None)
        token = pick(rng, rest) if token is None else token
        matcher.advance(token)
        text += tokenizer.bytes_of(token)
    raise AssertionError(f"no end in sight: {text!r}")


def fits(compiled, tokenizer, ids):
    """Is the text of these ids allowed, token after token, and complete?"""
    matcher = compiled.matcher()
    for token in ids:
        if not allows(matcher.mask(), token):
            return False
        matcher.advance(token)
    return matcher.accepting


def is_trip(value):
    legs = value.pop("legs", [[1, 2]])
    return (
        set(value) == {"city", "days", "units"}
        and isinstance(value["city"], str)
        and len(value["city"]) <= 12
        and isinstance(value["days"], int)
        and 1 <= value["days"] <= 14
        and value["units"] in ("celsius", "fahrenheit", None)
        and 1 <= len(legs) <= 3
        and all(len(leg) == 2 and all(isinstance(x, int | float) for x in leg) for leg in legs)
    )


def is_tree(value):
    children = value.pop("children", [])
    return (
        isinstance(value.pop("value"), bool)
        and not value
        and len(children) <= 2
        and all(map(is_tree, children))
    )


def is_sum(text):
    while (shorter := re.sub(r"\(\d{1,3}([+-]\d{1,3})*\)", "0", text)) != text:
        text = shorter
    return re.fullmatch(r"\d{1,3}([+-]\d{1,3})*", text) is not None


CASES = {
    "schema": (Grammar("json_schema", json.dumps(TRIP)), lambda text: is_trip(json.loads(text))),
    "recursive": (Grammar("json_schema", json.dumps(TREE)), lambda text: is_tree(json.loads(text))),
    "enum": (Grammar("json_schema", json.dumps({"enum": WORDS})), lambda text: json.loads(text) in WORDS),
    "any object": (
        Grammar("json_schema", '{"type": "object"}'),
        lambda text: isinstance(json.loads(text), dict),
    ),
    "pattern": (
        Grammar("json_schema", r'{"type": "string", "pattern": "^[a-c]{2}\\d+$"}'),
        lambda text: re.fullmatch(r"[a-c]{2}\d+", json.loads(text)),
    ),
    "regex": (
        Grammar("regex", r"\+[0-9]{2}( [0-9]{3,5}){1,2}/(é|☂)?"),
        lambda text: re.fullmatch(r"\+[0-9]{2}( [0-9]{3,5}){1,2}/(é|☂)?", text),
    ),
    "lark": (Grammar("lark", SUM), is_sum),
}


@pytest.mark.parametrize("name", ["bundled", "qwen"])
@pytest.mark.parametrize("case", CASES)
def test_whatever_the_masks_lead_to_is_valid(name, case):
    grammar, valid = CASES[case]
    owner, tokenizer = grammars(name), tokenizer_of(name)
    for seed in range(12):
        text = draw(owner.answer(grammar), tokenizer, owner._stops, seed)
        assert valid(text), text


@pytest.mark.parametrize("name", ["bundled", "qwen"])
@pytest.mark.parametrize("case", CASES)
def test_every_spelling_of_a_text_is_allowed(name, case):
    grammar, _ = CASES[case]
    owner, tokenizer = grammars(name), tokenizer_of(name)
    compiled = owner.answer(grammar)
    by_byte = {tokenizer.bytes_of(token): token for token in range(256)}
    for seed in range(3):
        text = draw(compiled, tokenizer, owner._stops, seed)
        assert fits(compiled, tokenizer, tokenizer.encode(text))
        assert fits(compiled, tokenizer, [by_byte[bytes([byte])] for byte in text.encode()])
        assert not fits(compiled, tokenizer, tokenizer.encode(text + "\\"))


@given(st.data())
def test_a_mask_holds_exactly_the_tokens_that_fit(data):
    owner, tokenizer = grammars("tiny"), tokenizer_of("tiny")
    words = data.draw(st.lists(st.text("abté\n in", max_size=6), min_size=1, max_size=4, unique=True))
    matcher = owner.answer(Grammar("regex", "|".join(words))).matcher()
    language, so_far = {word.encode() for word in words}, b""
    tokens = {token: tokenizer.bytes_of(token) for token in range(tokenizer.num_ids)}
    plain = {token: text for token, text in tokens.items() if token not in tokenizer.control_ids}
    while True:
        fit = {
            token for token, text in plain.items() if any(word.startswith(so_far + text) for word in language)
        }
        assert matcher.accepting == (so_far in language)
        assert ids_of(matcher.mask()) == fit | (owner._stops if so_far in language else set())
        assert ids_of(matcher.mask([5, 260])) >= {5, 260}
        if not fit:
            return
        token = data.draw(st.sampled_from(sorted(fit)))
        matcher.advance(token)
        so_far += plain[token]


def test_ids_without_a_token_and_control_tokens_are_never_allowed(tmp_path):
    raw = text_fixtures.tiny_json()
    for item in raw["added_tokens"]:
        item["id"] += 5  # a hole of five ids
    tokenizer = Tokenizer.from_dir(text_fixtures.write_model_dir(tmp_path, raw))
    plain = {token for token in range(262) if not 0xF5 <= token <= 0xFF and token not in (0xC0, 0xC1)}
    plain -= set(range(0x80, 0xC0))  # no character begins with these
    for width in (tokenizer.num_ids, 264, 256, 250):
        owner = Grammars(tokenizer, width, frozenset({271, 3000}))
        mask = owner.answer(Grammar("regex", "(?s:.)*")).matcher().mask()
        assert len(mask) == -(-width // 32) * 4
        assert ids_of(mask) == {token for token in plain | {271} if token < width}


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        (Grammar("json_schema", "{"), "JSON schema is no JSON: Expecting property name"),
        (Grammar("json_schema", "[" * 100_000), "JSON schema is no JSON"),
        (Grammar("json_schema", "[1]"), "schema must be an object or boolean"),
        (Grammar("json_schema", '{"type": "strin"}'), "Invalid type: strin"),
        (Grammar("json_schema", '{"not": {"type": "string"}}'), 'Unimplemented keys: ["not"]'),
        (Grammar("json_schema", '{"not": {}, "x-guidance": {"lenient": true}}'), "Unimplemented keys"),
        (Grammar("json_schema", '{"$ref": "http://a.example/b"}'), "http://a.example/b"),
        (Grammar("json_schema", '{"type": "string", "format": "shoe"}'), "Unknown format: shoe"),
        (Grammar("json_schema", '{"enum": []}'), "anyOf is empty"),
        (Grammar("json_schema", "false"), "schema is false"),
        (Grammar("regex", "a("), "regex cannot be enforced: unclosed group"),
        (Grammar("regex", "(?=a)b"), "look-around"),
        (Grammar("regex", "[^\x00-\U0010ffff]"), "regex matches no text"),
        (Grammar("regex", "\ud800"), "half of a character"),
        (Grammar("lark", "start: foo"), 'Lark grammar cannot be enforced: at 1(8): unknown name: "foo"'),
        (Grammar("lark", ""), "no start rule"),
        (Grammar("lark", 'start: "a" <think>'), "names the token <think>"),
        (Grammar("lark", "start: <[261]>"), "names the token <[261]>"),
        (Grammar("lark", 'start: a\na[stop="x"]: /.*/'), "sets stop"),
        (Grammar("lark", "start: a\na[temperature=0.5]: /.*/"), "sets temperature"),
    ],
)
def test_what_cannot_be_enforced_is_named_in_one_line(grammar, says):
    with pytest.raises(UsageError) as caught:
        grammars("tiny").answer(grammar)
    assert says in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_text_that_looks_like_a_token_or_an_option_is_text():
    grammar = Grammar("lark", 'start: "<think>" /<b>stop=[0-9]/ // <think> stop=\n# <[3]>\n')
    assert fits(grammars("tiny").answer(grammar), None, text_fixtures.tiny().encode("<think><b>stop=1"))


def test_a_grammar_that_comes_to_a_dead_end_says_so():
    matcher = grammars("tiny").answer(Grammar("lark", 'start: "a" x\nx: x "b"')).matcher()
    matcher.mask()
    matcher.advance(ord("a"))
    with pytest.raises(UsageError, match="cannot be followed any further"):
        matcher.mask()


def test_white_space_in_free_json_is_bounded():
    compiled, tokenizer = grammars("tiny").answer(Grammar("json_schema", "true")), text_fixtures.tiny()
    for indent in (None, 1, 4):
        text = json.dumps({"a": [1, {"b": None}], "c": "d"}, indent=indent)
        assert fits(compiled, tokenizer, tokenizer.encode(text))
    for text in ('{  "a": 1}', '{"a": 1} ', "\n1", "[\n\n1]", "[" + "\n" + " " * 41 + "1]"):
        assert not fits(compiled, tokenizer, tokenizer.encode(text))


def tool(name, parameters=None):
    """A tool as a request lists it."""
    function = {"name": name, "description": "d"} | ({"parameters": parameters} if parameters else {})
    return {"type": "function", "function": function}


TOOLS = [tool("book", TRIP), tool("book_tree", TREE), tool("größe 📏", {"properties": {}}), tool("now")]
VALID = {
    "book": is_trip,
    "book_tree": is_tree,
    "größe 📏": lambda value: True,
    "now": lambda value: value == {},
}


@pytest.mark.parametrize("name", ["bundled", "qwen"])
@pytest.mark.parametrize("only", [None, *VALID])
def test_every_call_that_the_masks_lead_to_is_a_call_of_a_tool(name, only):
    tokenizer = tokenizer_of(name)
    ends = frozenset({tokenizer.control_id("</tool_call>")})
    compiled = grammars(name).tool_call(TOOLS, only, ends)
    for seed in range(6):
        text = draw(compiled, tokenizer, ends, seed)
        parser = ToolCallParser(0, "c")
        parser.push(text)
        _, call = parser.finish(closed=True)
        assert call is not None, (text, parser.reason)
        assert call.name == only or only is None
        assert VALID[call.name](json.loads(call.arguments)), text
        assert text.startswith('\n{"name": "') and text.endswith("}\n")


@pytest.mark.parametrize("name", ["bundled", "qwen"])
def test_a_call_may_be_spelled_as_the_templates_spell_it(name):
    tokenizer, compiled = tokenizer_of(name), grammars(name).tool_call(TOOLS)
    trip = {"city": 'Zürich"東京"\n😀', "days": 3, "units": None, "legs": [[1, 2.5]]}
    tree = {"value": True, "children": [{"value": False, "children": []}]}
    for called, arguments in (("book", trip), ("book_tree", tree), ("größe 📏", {"a": [{}]}), ("now", {})):
        text = json.dumps({"name": called, "arguments": arguments}, ensure_ascii=False)
        assert fits(compiled, tokenizer, tokenizer.encode(f"\n{text}\n"))
        tight = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
        text = f'\n{{"name": {json.dumps(called, ensure_ascii=False)}, "arguments": {tight}}}\n'
        assert fits(compiled, tokenizer, tokenizer.encode(text)) == (not arguments)


@pytest.mark.parametrize(
    ("tools", "name", "says"),
    [
        ([], None, "no tool to call"),
        ([tool("")], None, "tool 0 has no name"),
        ([tool("a"), {"type": "function"}], None, "tool 1 has no name"),
        ([tool("a"), tool("a")], None, "two tools are called 'a'"),
        ([tool("a"), tool("b")], "c", "tool 'c' is not among the tools: 'a', 'b'"),
        ([tool("a"), tool("b", {"not": {}})], None, "schema of tool 'b' cannot be enforced: Unimplemented"),
        ([tool("a", {"type": "string"})], None, "parameters of tool 'a' are no schema of an object"),
        ([tool("a", {"const": float("nan")})], None, "tool 'a' is no JSON"),
        ([tool("a", {"const": "\ud800"})], None, "half of a character"),
    ],
)
def test_tools_that_cannot_be_enforced_are_named_in_one_line(tools, name, says):
    with pytest.raises(UsageError) as caught:
        grammars("tiny").tool_call(tools, name)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_equal_grammars_compile_once_and_their_matchers_are_apart():
    tokenizer = text_fixtures.tiny()
    owner = Grammars(tokenizer, tokenizer.num_ids, frozenset())
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(owner.answer(Grammar("regex", "ab?")))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(map(id, found))) == 1
    one, other = found[0].matcher(), found[0].matcher()
    one.advance(ord("a"))
    assert (ids_of(one.mask()), ids_of(other.mask())) == ({ord("b")}, {ord("a")})
    assert one.accepting and not other.accepting
