"""Contracts of /v1/completions, seen through OpenAI's own client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

RAW = "<|im_start|>user\nWhat is 47 * 86?<|im_end|>\n<|im_start|>assistant\n"


def complete(client, **fields: Any):
    """One raw completion."""
    return client.completions.create(
        model="nano", **{"prompt": RAW, "max_tokens": 200, "temperature": 0} | fields
    )


def test_a_raw_prompt_is_read_and_answered_whole(client, served):
    done = complete(client)
    assert done.choices[0].text.startswith("<think>\n") and done.choices[0].text.endswith("</think>\n\n4042")
    assert done.choices[0].finish_reason == "stop" and done.id.startswith("cmpl-")
    ids = served.llm.tokenizer.encode(RAW, control=True)
    assert done.usage.prompt_tokens == len(ids)
    assert complete(client, prompt=ids).choices[0].text == done.choices[0].text
    assert len(complete(client, max_tokens=openai.omit).choices[0].text) < len(done.choices[0].text)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2, "seed": 1, "temperature": 1.0},
        {"prompt": [RAW, "What"], "echo": True, "max_tokens": 9},
        {"logprobs": 2, "max_tokens": 20},
        {"stop": "</think>"},
    ],
)
def test_raw_chunks_joined_are_the_answer(client, fields):
    whole = complete(client, **fields)
    chunks = list(complete(client, **fields, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert parts[-1].finish_reason == choice.finish_reason
        if choice.logprobs:
            tokens = [token for part in parts for token in part.logprobs.tokens]
            assert tokens == choice.logprobs.tokens and "".join(tokens) == choice.text
            assert choice.logprobs.text_offset[1] == len(tokens[0])
            assert all(len(top) == 2 for top in choice.logprobs.top_logprobs)


def test_several_prompts_are_several_choices(client):
    done = complete(client, prompt=[RAW, RAW + "<think>\n\n</think>\n\n"], n=2, echo=True, max_tokens=5)
    assert len(done.choices) == 4
    assert [choice.text.startswith(RAW + "<think>\n\n") for choice in done.choices] == [
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"extra_body": {"thinking_budget": 3}}, "thinking_budget"),
        ({"logprobs": 21}, "logprobs"),
    ],
)
def test_raw_refusals(client, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, **fields)
    assert caught.value.param == param
