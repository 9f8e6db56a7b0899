"""Chat templates that are known to be wrong: found by what they render, replaced by what they mean.

In: our own templates, and damaged copies of them. Does not know: files.
"""

import hashlib

import pytest
from text_fixtures import qwen

from deepfast.text import repair
from deepfast.text.repair import fault_of, own_template, repaired
from deepfast.text.template import ChatTemplate, Modes
from deepfast.types import Message, ToolCall

KINDS = ("hybrid", "thinking", "instruct", "QwQ")
MODES = {
    "hybrid": Modes("hybrid", False),
    "thinking": Modes("think", True),
    "instruct": Modes("no_think", False),
    "QwQ": Modes("think", True),
}
TEXT_OF = "message.content if message.content is string else ''"


def early(kind):
    """A template as it was before anybody sent null as content."""
    return own_template(kind).replace(TEXT_OF, "message.content + ''")


@pytest.mark.parametrize("kind", KINDS)
def test_ours_are_good_and_of_their_kind(kind):
    assert fault_of(own_template(kind), {}) is None
    assert ChatTemplate({"default": own_template(kind)}, qwen()).modes == MODES[kind]
    assert repaired({"default": own_template(kind)}, {}, True) == ({"default": own_template(kind)}, ())


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_fails_on_null_is_replaced_by_its_like(kind):
    templates, notes = repaired({"default": early(kind), "tool_use": "x"}, {}, True)
    assert templates == {"default": own_template(kind)}
    assert notes == (
        "the chat template of this file fails on an answer that is only a tool call; a working one for "
        f"{kind} models takes its place.",
    )


def test_one_that_closes_every_thought_is_replaced():
    source = own_template("QwQ") + "{%- if not enable_thinking -%}{{- '</think>' -}}{%- endif -%}"
    assert ChatTemplate({"default": source}, qwen()).modes.kind == "hybrid"  # which QwQ is not
    templates, notes = repaired({"default": source}, {}, True)
    assert templates == {"default": own_template("QwQ")} and "closes every thought" in notes[0]


def test_a_space_before_tools_is_seen():
    source = own_template("hybrid").replace("'# Tools", "' # Tools")
    templates, notes = repaired({"default": source}, {}, True)
    assert templates == {"default": own_template("hybrid")} and "' # Tools'" in notes[0]


def test_texts_are_known_by_their_hash(monkeypatch):
    good = own_template("hybrid")
    known = {hashlib.sha256(good.encode()).hexdigest(): "is known"}
    monkeypatch.setattr(repair, "KNOWN_BAD", known)
    assert "is known" in repaired({"default": good}, {}, True)[1][0]


def test_other_formats_are_not_replaced():
    """What fails on some conversations is kept, and told; what fails on all is left out."""
    foreign = "{% for m in messages %}[{{ m.role }}]{{ m.content + '' }}{% endfor %}{{ tools }}"
    templates, notes = repaired({"default": foreign}, {}, True)
    assert templates == {"default": foreign} and "will be refused" in notes[0]
    qwen25 = early("instruct") + "{# You are Qwen, created by Alibaba Cloud. #}"
    assert repaired({"default": qwen25}, {}, True)[0] == {"default": qwen25}
    assert repaired({"default": early("hybrid")}, {}, chatml=False)[0] == {"default": early("hybrid")}
    for useless in ("{% for %}", "{{ messages | nonsense }}", "{{ 1 / 0 }}", "always the same"):
        templates, notes = repaired({"default": useless}, {}, True)
        assert templates == {} and "left out" in notes[0] and "\n" not in notes[0]


def test_refusals_on_purpose_are_no_faults():
    """Llama's templates refuse several calls at once, or a system message that is not the first."""
    long = "{% if tools or messages | length > 1 %}{{ raise_exception('no') }}{% endif %}"
    source = long + "{{ messages[0].content }}"
    assert fault_of(source, {}) is None
    assert fault_of("{{ raise_exception('never') }}", {}) is None


def test_nothing_to_repair():
    assert repaired({}, {}, True) == ({}, ())


def test_qwq_keeps_only_what_follows_the_thought():
    template = ChatTemplate({"default": own_template("QwQ")}, qwen())
    call = (ToolCall("f", '{"a": 1}'),)
    text = template.render(
        [
            Message("user", "q"),
            Message("assistant", "<think>\nsecret\n</think>\n\nlook", tool_calls=call),
            Message("tool", "r1"),
            Message("tool", "r2"),
        ]
    )
    assert text == (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nlook\n<tool_call>\n"
        '{"name": "f", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n<|im_start|>user\n'
        "<tool_response>\nr1\n</tool_response>\n<tool_response>\nr2\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n"
    )


def test_instruct_leaves_answers_as_they_are():
    template = ChatTemplate({"default": own_template("instruct")}, qwen())
    text = template.render([Message("system", "s"), Message("user", "q"), Message("assistant", "\n\na")])
    assert text == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
        "<|im_start|>assistant\n\n\na<|im_end|>\n<|im_start|>assistant\n"
    )
