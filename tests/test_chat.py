"""What a chat request may ask of its thought and its answer, on a tiny random model that obeys nothing.

Steering, waits, tool calls, grammars, forks, log-probabilities, the prefix cache. In: a random checkpoint
with the bundled vocabulary. Out: contracts. Does not know: what the tokens mean.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import chat_checkpoint

from deepfast import LLM, AsyncLLM, EngineConfig, Grammar, Message, SamplingParams, Thinking, Variant
from deepfast.types import Completion, ControlError, UsageError

CONFIG = EngineConfig(max_context=2048, max_kv_tokens=8192, threads=2)
ON, OFF = Thinking(mode="on"), Thinking(mode="off")
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}
SAY = {"type": "function", "function": {"name": "say", "parameters": EMPTY}}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(
        chat_checkpoint(tmp_path_factory.mktemp("model"), max_position_embeddings=4096), config=CONFIG
    ) as llm:
        yield llm


def draw(seed: int = 0, **changes: object) -> SamplingParams:
    """Wild sampling: any token may come."""
    wild = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=seed, max_tokens=200)
    return replace(wild, **changes)  # type: ignore[arg-type]


def at_rest(llm: LLM) -> bool:
    """Waits until nothing runs; True when nobody owns a block."""
    deadline = time.monotonic() + 10
    while llm.engine.is_busy and time.monotonic() < deadline:
        time.sleep(0.002)
    return llm.engine.scheduler.pool.num_free == llm.engine.scheduler.pool.num_blocks


# --- the thought ---


def test_a_thought_that_would_end_too_early_goes_on(llm: LLM):
    close = llm.requests.ids.think_close
    eager = {close: 12.0}  # a model that wants to end its thought at once
    plain = llm.chat("Hi", draw(logit_bias=eager), ON)
    longer = llm.chat("Hi", draw(logit_bias=eager), Thinking(mode="on", min_tokens=20))
    assert plain.usage.reasoning_tokens < 20 <= longer.usage.reasoning_tokens
    assert plain.thinking.waits == 0 < longer.thinking.waits <= 6
    assert "Wait" in longer.reasoning
    assert longer.content.strip()


def test_the_soft_landing_ends_the_thought_before_the_guillotine(llm: LLM):
    landed = 0
    for seed in range(6):
        hard = llm.chat("Hi", draw(seed), Thinking(mode="on", budget=60))
        soft = llm.chat("Hi", draw(seed), Thinking(mode="on", budget=60, soft_landing=20))
        assert soft.usage.reasoning_tokens <= max(60, hard.usage.reasoning_tokens)
        assert soft.thinking.stop in ("budget", "natural")
        landed += soft.usage.reasoning_tokens < 60
    assert landed >= 5


def test_a_running_thought_can_be_ended_extended_limited_and_hinted(llm: LLM):
    never = {llm.requests.ids.think_close: -100.0}
    with llm.stream(
        "Hi", draw(max_tokens=1500, logit_bias=never), Thinking(mode="on", on_loop="ignore")
    ) as s:
        next(s)
        s.hint("the sum is 7")
        s.extend_thought(10)
        s.set_budget(1000)
        s.end_thought()
        done = s.result()
        with pytest.raises(ControlError, match="over"):
            s.end_thought()
    assert done.thinking.stop == "user"
    assert "the sum is 7" in done.reasoning
    assert done.thinking.budget == 1000
    assert done.usage.reasoning_tokens < 1000
    assert done.content.strip()
    with llm.stream(
        "Hi", draw(max_tokens=1500, logit_bias=never), Thinking(mode="on", on_loop="ignore")
    ) as s:
        next(s)
        s.set_budget(5)
        assert s.result().thinking.stop == "budget"
    with llm.stream("Hi", draw(max_tokens=1500), OFF) as s:
        with pytest.raises(ControlError, match="not open"):
            s.hint("no thought here")
        with pytest.raises(UsageError, match="hint is empty"):
            s.hint(" ")


def test_steering_from_an_event_loop(llm: LLM):
    async def run() -> Completion:
        never = {llm.requests.ids.think_close: -100.0}
        wish = Thinking(mode="on", on_loop="ignore")
        stream = AsyncLLM(llm).stream("Hi", draw(max_tokens=1500, logit_bias=never), wish)
        await anext(stream)
        await stream.hint("think of 7")
        await stream.end_thought()
        return await stream.result()

    done = asyncio.run(run())
    assert done.thinking.stop == "user"
    assert "think of 7" in done.reasoning
    assert at_rest(llm)


def test_what_was_applied_comes_back_with_its_source(llm: LLM):
    def report(text: str, wish: Thinking | None) -> tuple[str, str]:
        done = llm.chat(text, draw(max_tokens=40), wish)
        return done.thinking.mode, done.thinking.source

    assert report("Hi", None) == ("on", "default")
    assert report("Hi /no_think", None) == ("off", "/no_think")
    assert report("Hi", OFF) == ("off", "mode")
    assert report("Hi", Thinking(mode="off", source="reasoning_effort")) == ("off", "reasoning_effort")


def test_nobody_is_harmed_by_a_steering_call_that_was_given_up(llm: LLM):
    with llm.stream("Hi", draw(max_tokens=400), OFF) as stream:
        given_up = [llm.engine.call(lambda: None).cancel() for _ in range(100)]
        assert any(given_up), "all of them had run before they could be given up"
        assert stream.result().finish_reason in ("stop", "length")


def test_a_dropped_async_stream_is_aborted(llm: LLM):
    async def run() -> None:
        stream = AsyncLLM(llm).stream("Hi", draw(max_tokens=1900, ignore_eos=True), OFF)
        await anext(stream)
        seq = stream.seq
        del stream
        gc.collect()
        while seq is not None and seq.finish_reason is None:
            await asyncio.sleep(0.005)
        assert seq is not None and seq.finish_reason == "abort" and seq.num_new < 1900

    asyncio.run(run())
    assert at_rest(llm)


# --- tool calls ---


@pytest.mark.parametrize("wish", [ON, OFF], ids=["think", "no_think"])
@pytest.mark.parametrize("choice", ["required", "add"])
def test_a_required_call_is_made_and_its_arguments_fit_the_schema(llm: LLM, wish: Thinking, choice: str):
    for seed in range(5):
        stream = llm.stream("Hi", draw(seed, max_tokens=300), wish, [SAY, ADD], choice)
        deltas = list(stream)
        done = stream.completion
        assert done.tool_calls or done.malformed, "a call was begun"
        assert (done.finish_reason == "tool_calls") == (
            bool(done.tool_calls) and done.finish_reason != "length"
        )
        for number, call in enumerate(done.tool_calls):
            arguments = json.loads(call.arguments)
            if call.name == "add":
                assert set(arguments) == {"a", "b"}
                assert isinstance(arguments["a"], int) and arguments["b"] in ("x", "y")
            if choice == "add":
                assert call.name == "add"
            pieces = [d for d in deltas if d.kind == "tool_call" and d.index == number]
            assert (pieces[0].name, pieces[0].id) == (call.name, call.id)
            assert "".join(d.text for d in pieces) == call.arguments
        assert len({call.id for call in done.tool_calls}) == len(done.tool_calls)


def test_no_call_when_none_is_allowed(llm: LLM):
    eager = {llm.requests.ids.tool_open: 50.0}
    done = llm.chat("Hi", draw(logit_bias=eager), OFF, [SAY], "none")
    assert not done.tool_calls and not done.malformed
    assert llm.requests.ids.tool_open not in done.token_ids


def test_a_call_begun_inside_a_thought_closes_the_thought_first(llm: LLM):
    ids = llm.requests.ids
    done = llm.chat("Hi", draw(3, logit_bias={ids.tool_open: 6.0}, max_tokens=400), ON, [SAY])
    at = done.token_ids.index(ids.tool_open)
    assert ids.think_close in done.token_ids[:at]
    assert done.sampled[at] and not done.sampled[at - 1]
    assert done.tool_calls


def test_a_required_call_that_began_inside_the_thought_is_not_made_twice(llm: LLM):
    ids = llm.requests.ids
    done = llm.chat("Hi", draw(3, logit_bias={ids.tool_open: 6.0}), ON, [SAY], "required")
    at = done.token_ids.index(ids.tool_open)
    assert ids.think_close in done.token_ids[:at] and done.sampled[at]
    forced = [t for t, sampled in zip(done.token_ids, done.sampled, strict=True) if not sampled]
    assert ids.tool_open not in forced


def test_a_call_cut_off_is_returned_as_content_with_its_reason(llm: LLM):
    done = llm.chat("Hi", draw(max_tokens=4), OFF, [ADD], "required")
    assert done.finish_reason == "length"
    assert done.content.startswith("<tool_call>") and done.malformed and not done.tool_calls


def test_tools_that_cannot_be_used_are_refused(llm: LLM):
    for words, call in {
        "needs tools": lambda: llm.chat("Hi", draw(), OFF, None, "required"),
        "'nothing'": lambda: llm.chat("Hi", draw(), OFF, [SAY], "nothing"),
    }.items():
        with pytest.raises(UsageError, match=words):
            call()


# --- structured output ---


@pytest.mark.parametrize("wish", [ON, OFF], ids=["think", "no_think"])
def test_the_answer_obeys_its_grammar_in_both_modes_and_the_thought_does_not(llm: LLM, wish: Thinking):
    schema = json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    for seed in range(4):
        done = llm.chat("Hi", draw(seed, grammar=Grammar("regex", "(ab|cd){2,4}[0-9]")), wish)
        assert done.finish_reason == "stop"
        assert len(done.content) in (5, 7, 9) and done.content[-1].isdigit()
        assert bool(done.reasoning) == (wish is ON)
        done = llm.chat("Hi", draw(seed, grammar=Grammar("json_schema", schema), max_tokens=600), wish)
        if done.finish_reason == "stop":
            assert isinstance(json.loads(done.content)["n"], int)
    lark = Grammar("lark", 'start: "yes" | "no"')
    assert llm.chat("Hi", draw(grammar=lark), wish).content in ("yes", "no")


def test_with_tools_and_a_grammar_a_turn_is_calls_and_an_answer_of_that_form(llm: LLM):
    ids, seen = llm.requests.ids, set()
    for seed in range(12):
        bias = {ids.tool_open: -5.0}
        wish = draw(seed, grammar=Grammar("regex", "(yes|no)"), logit_bias=bias)
        done = llm.chat("Hi", wish, OFF, [SAY])
        assert done.finish_reason == ("tool_calls" if done.tool_calls else "stop")
        assert done.content in (("", "yes", "no") if done.tool_calls else ("yes", "no"))
        seen.add(bool(done.tool_calls))
    assert seen == {True, False}


def test_newlines_that_a_grammar_asks_for_are_part_of_the_answer(llm: LLM):
    for wish in (ON, OFF):
        assert llm.chat("Hi", draw(grammar=Grammar("regex", r"\n\n(yes|no)")), wish).content in (
            "\n\nyes",
            "\n\nno",
        )


def test_a_grammar_that_cannot_be_enforced_is_refused_in_one_line(llm: LLM):
    for grammar in (Grammar("regex", "(ab"), Grammar("json_schema", "{"), Grammar("lark", "start: what")):
        with pytest.raises(UsageError) as caught:
            llm.chat("Hi", draw(grammar=grammar), OFF)
        assert "\n" not in str(caught.value)


# --- forks, the prefix cache ---


def test_branches_of_one_prompt_equal_the_same_requests_alone(llm: LLM):
    question = "word " * 100
    variants = [*Variant.branches(2, draw(7), ON), Variant(draw(9), OFF), Variant(draw(9), Thinking("on", 5))]
    forked = llm.fork(question, variants)
    alone = [llm.chat(question, v.params, v.thinking) for v in variants]
    assert [c.token_ids for c in forked] == [c.token_ids for c in alone]
    assert [c.content for c in forked] == [c.content for c in alone]
    assert all(c.usage.cached_tokens > 80 for c in forked[1:])
    assert len({c.token_ids for c in forked}) == 4


def test_the_next_turn_starts_behind_the_answer_however_long_the_thought_was(llm: LLM):
    turns = [Message("user", "first question " * 10)]
    for n in range(3):
        done = llm.chat(turns, draw(n, max_tokens=40 + 100 * n), Thinking("on", 100 * n))
        assert at_rest(llm)
        turns += [Message("assistant", done.content, done.reasoning), Message("user", f"and {n}?")]
        prompt = llm.template.encode(turns, enable_thinking=True)
        following = llm.chat(turns, draw(max_tokens=20), Thinking(mode="on"))
        assert following.usage.prompt_tokens - following.usage.cached_tokens < 48, (n, len(prompt))
        assert following.cache_miss in ("none", "diverged")


def test_cached_equals_cold(llm: LLM):
    turns = [Message("user", "tell me of the sea " * 20)]
    cold = llm.chat(turns, draw(1), ON)
    warm = llm.chat(turns, draw(1), ON)
    assert cold.token_ids == warm.token_ids
    assert warm.usage.cached_tokens > cold.usage.cached_tokens
    assert cold.cache_miss in ("cold", "diverged") and warm.cache_miss == "none"


# --- the rest ---


def test_log_probabilities_of_every_sampled_token(llm: LLM):
    stream = llm.stream("Hi", draw(2, logprobs=3, max_tokens=60), Thinking("on", 10))
    sent = [item for delta in stream for item in delta.logprobs]
    done = stream.completion
    assert len(done.logprobs) == len(done.token_ids)
    for token, sampled, item in zip(done.token_ids, done.sampled, done.logprobs, strict=True):
        assert (item is not None) == sampled
        if item is not None:
            assert item.token_id == token and item.logprob <= 0 and len(item.top) == 3
            assert list(item.top) == sorted(item.top, key=lambda pair: -pair[1])
            assert sum(math.exp(p) for _, p in item.top) <= 1 + 1e-6
    texts = [i for i, k in zip(done.logprobs, done.kinds, strict=True) if i is not None and k is not None]
    assert sent == texts
    assert llm.chat("Hi", draw(2, max_tokens=60), Thinking("on", 10)).token_ids == done.token_ids


def test_kinds_partition_the_tokens(llm: LLM):
    no_call = draw(4, logit_bias={llm.requests.ids.tool_open: -100.0})
    done = llm.chat("Hi", no_call, ON)
    assert done.kinds.count("reasoning") == done.usage.reasoning_tokens
    said = [t for t, kind in zip(done.token_ids, done.kinds, strict=True) if kind == "content"]
    assert llm.tokenizer.decode(said).lstrip("\n") == done.content
    assert not llm.tokenizer.control_ids & {
        t for t, k in zip(done.token_ids, done.kinds, strict=True) if k is not None
    }


def test_stop_token_ids_end_the_answer_and_not_the_thought(llm: LLM):
    free = llm.chat("Hi", draw(5, max_tokens=300), Thinking("on", 30))
    content = [i for i, kind in enumerate(free.kinds) if kind == "content"]
    token = free.token_ids[content[8]]
    cut = llm.chat("Hi", draw(5, max_tokens=300, stop_token_ids=(token,)), Thinking("on", 30))
    first = next(i for i in content if free.token_ids[i] == token)
    assert cut.token_ids == free.token_ids[: first + 1]
    assert (cut.finish_reason, cut.kinds[-1]) == ("stop", None)


def test_a_control_token_may_be_a_stop(llm: LLM):
    other = min(llm.requests.ids.others)
    done = llm.chat("Hi", draw(1, stop_token_ids=(other,), logit_bias={other: 8.0}), OFF)
    assert (done.token_ids[-1], done.finish_reason, done.kinds[-1]) == (other, "stop", None)
    assert done.content.strip()


def test_a_stop_string_that_never_comes_changes_nothing(llm: LLM):
    for seed in range(8):
        free = llm.chat("Hi", draw(seed, max_tokens=400), OFF)
        stop = free.content[:2] + "\0"  # what is held back for it is text all the same
        assert llm.chat("Hi", draw(seed, max_tokens=400, stop=(stop,)), OFF).content == free.content


def test_ignoring_the_end_of_the_turn_goes_on_with_text(llm: LLM):
    done = llm.chat("Hi", draw(6, ignore_eos=True, max_tokens=150), OFF)
    assert (done.finish_reason, len(done.token_ids)) == ("length", 150)
    assert not set(done.token_ids) & llm.requests.ids.stops


def test_ids_outside_the_vocabulary_are_refused(llm: LLM):
    for params in (draw(logit_bias={999999: 1.0}), draw(stop_token_ids=(999999,))):
        with pytest.raises(UsageError, match="999999"):
            llm.chat("Hi", params, OFF)


def test_values_of_a_wrong_type_are_refused_at_the_door(llm: LLM):
    wrong = {
        "logprobs=1.5": lambda: SamplingParams(logprobs=1.5),
        "max_tokens='8'": lambda: SamplingParams(max_tokens="8"),
        "stop='END'": lambda: SamplingParams(stop="END"),
        "stop=\\(5,\\)": lambda: SamplingParams(stop=(5,)),
        "2.5 is|=2.5": lambda: SamplingParams(stop_token_ids=(2.5,)),
        "budget=1.5": lambda: Thinking(budget=1.5),
        "prompt 0 holds id 1.0": lambda: llm.generate([[1.0]]),
        "params is dict": lambda: llm.chat("Hi", {"max_tokens": 3}),
        "thinking is str": lambda: llm.chat("Hi", None, "on"),
        "tool_choice=None": lambda: llm.chat("Hi", None, None, [SAY], None),
        "logit_bias=None": lambda: SamplingParams(logit_bias=None),
        "stop_token_ids=5": lambda: SamplingParams(stop_token_ids=5),
        "no text": lambda: llm.requests.encode_hint(5),
        "thoughts or tools": lambda: llm.chat("Hi", draw(stop_token_ids=(llm.requests.ids.tool_open,))),
        "backend='gpu'": lambda: EngineConfig(backend="gpu").resolve(llm.config, 1),
        "max_context=0": lambda: EngineConfig(max_context=0).resolve(llm.config, 1),
    }
    for words, call in wrong.items():
        with pytest.raises(UsageError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_template_that_opens_the_thought_itself_obeys_the_switch_in_the_text(tmp_path: Path):
    path = chat_checkpoint(tmp_path, max_position_embeddings=4096)
    template = path / "chat_template.jinja"
    plain, tail = (
        template.read_text(),
        "{%- if enable_thinking is not defined or enable_thinking %}<think>\n{%- endif %}",
    )
    template.write_text(plain + tail)
    with LLM(path, config=CONFIG) as llm:
        assert llm.template.modes == ("hybrid", True)
        assert llm.chat("Hi", draw(max_tokens=40)).reasoning
        done = llm.chat("Hi /no_think", draw(max_tokens=4))
        assert (done.reasoning, done.thinking.mode, done.thinking.source) == ("", "off", "/no_think")


def test_speculation_changes_no_token(llm: LLM, tmp_path: Path):
    path = chat_checkpoint(tmp_path, max_position_embeddings=4096)
    with LLM(path, config=replace(CONFIG, speculation=False, prefix_cache=False)) as plain:
        for seed in range(4):
            for params in (draw(seed), draw(seed, temperature=0.0), draw(seed, top_k=2)):
                fast, slow = (m.chat("again again again", params, Thinking("on", 90)) for m in (llm, plain))
                assert fast.token_ids == slow.token_ids
                assert fast.thinking.stop == slow.thinking.stop
    assert at_rest(llm)
