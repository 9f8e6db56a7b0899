"""What goes wrong in other runtimes, and does not here: a test for each failure, named after its threads.

Left out, because no engine causes or cures them: a model that claims a call it never made (qwen3#1817),
templates inside GGUF files (lcpp#13516), the placement of experts (oll#14579), switches in user interfaces
(owui#13314). Short names: vllm, sgl (SGLang), lcpp (llama.cpp), oll (Ollama), lms (LM Studio's bug tracker).
In: a tiny random model, biased to misbehave as those models did; the bundled one where sense is needed.
Does not know: how fast anything is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import chat_checkpoint
from contract import ADD, SAY, Ask, at_rest, check

from deepfast import LLM, Completion, ControlError, EngineConfig, Grammar, Message, SamplingParams, Thinking
from deepfast.model.hub import BUNDLED
from deepfast.thinking.controls import from_request

CONFIG = EngineConfig(max_context=4096, max_kv_tokens=12288, threads=1)
ON, OFF = Thinking(mode="on"), Thinking(mode="off")
WILD = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=1, max_tokens=160)
NUMBER = Grammar(
    "json_schema",
    '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"],'
    ' "additionalProperties": false}',
)
SENTENCE = "Considering the limited time"


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = chat_checkpoint(tmp_path_factory.mktemp("model"), max_position_embeddings=4096)
    with LLM(path, config=CONFIG) as llm:
        yield llm


@pytest.fixture(scope="module")
def nano() -> Iterator[LLM]:
    with LLM(config=EngineConfig(threads=1)) as nano:
        yield nano


def ask(
    llm: LLM, params: SamplingParams, thinking: Thinking, *tools: dict[str, Any], choice: str = "auto"
) -> Completion:
    """One request, checked against the whole contract."""
    wish = Ask("Hi", params, thinking, tools or None, choice)
    stream = llm.stream(wish.messages, wish.params, wish.thinking, wish.tools, wish.choice)
    deltas = list(stream)
    check(llm, wish, deltas, stream.completion)
    return stream.completion


def biased(llm: LLM, **bias: float) -> SamplingParams:
    """Wild sampling of a model that likes or hates a control token: think_open, think_close, tool_open."""
    return replace(WILD, logit_bias={getattr(llm.requests.ids, name): value for name, value in bias.items()})


def endless(llm: LLM, **changes: Any) -> SamplingParams:
    """A model that never ends its thought, in no way."""
    ids = llm.requests.ids
    never = dict.fromkeys([token for token in (ids.think_close, ids.tool_open, *ids.stops) if token], -100.0)
    return replace(WILD, logit_bias=never, **changes)


def looping(llm: LLM) -> SamplingParams:
    """A model that says the same word for ever."""
    return replace(WILD, logit_bias={llm.tokenizer.encode("a")[0]: 30.0}, max_tokens=1500)


# --- loops ---


def test_01_a_thought_that_goes_round_is_closed_and_answered(llm: LLM):
    """qwen3#1887, lms#1018, 1Cat-vLLM#569: thousands of tokens of one sentence, to the end."""
    done = ask(llm, looping(llm), ON)
    assert done.thinking.stop == "loop" and done.usage.reasoning_tokens < 700
    assert SENTENCE in done.reasoning and done.content.strip()
    free = ask(llm, looping(llm), Thinking("on", on_loop="ignore"))
    assert free.thinking.stop == "budget" and free.usage.reasoning_tokens > 1000 and free.content.strip()


def test_02_the_guard_leaves_answers_alone_and_is_inert_until_it_fires(llm: LLM):
    """vllm#52673, vllm#52677: the detector ends the request, and finds loops in rightful answers."""
    row = replace(looping(llm), max_tokens=900)
    done = ask(llm, row, OFF)
    assert (done.finish_reason, done.usage.completion_tokens) == ("length", 900)
    for seed in range(3):
        watched, free = (
            ask(llm, replace(WILD, seed=seed), Thinking("on", on_loop=what)) for what in ("close", "ignore")
        )
        assert watched.token_ids == free.token_ids


# --- budgets ---


def other_ids(path: Path) -> Path:
    """A model whose added tokens have each other's ids: <think> is where <|endoftext|> was, and so on."""
    chat_checkpoint(path, max_position_embeddings=1024)
    file = path / "tokenizer.json"
    raw = json.loads(file.read_text())
    ids = [token["id"] for token in raw["added_tokens"]]
    for token, other in zip(raw["added_tokens"], reversed(ids), strict=True):
        token["id"] = other
    file.write_text(json.dumps(raw))
    swapped = {token["content"]: token["id"] for token in raw["added_tokens"]}
    for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
        config = json.loads((path / name).read_text())
        config.pop("added_tokens_decoder", None)
        if "eos_token_id" in config:
            config["eos_token_id"] = swapped["<|im_end|>"]
        (path / name).write_text(json.dumps(config))
    return path


def test_03_budgets_hold_whatever_the_ids_are_or_are_refused(llm: LLM, tmp_path: Path):
    """sgl#25536, sgl#20029: ids of one model in the source; on another the budget is silently ignored."""
    with LLM(other_ids(tmp_path), config=replace(CONFIG, max_context=512)) as other:
        assert other.requests.ids.think_close != llm.requests.ids.think_close
        done = ask(other, biased(other, think_close=-100.0), Thinking("on", budget=12))
        assert done.thinking.stop == "budget" and SENTENCE in done.reasoning
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (BUNDLED / name).read_text()
        (tmp_path / name).write_text(text.replace("<think>", "<hm>").replace("</think>", "</hm>"))
    with LLM(tmp_path, config=replace(CONFIG, max_context=512)) as thoughtless:
        with pytest.raises(ControlError, match="budget=12"):
            thoughtless.chat("Hi", WILD, Thinking(budget=12))


@pytest.mark.parametrize("change", [{"speculation": False}, {"prefix_cache": False}, {"max_batch_tokens": 8}])
def test_04_budgets_hold_with_every_other_feature(llm: LLM, tmp_path: Path, change: dict[str, int]):
    """vllm#39573, vllm#54906, vllm#44510: lost with speculation, or with another runner."""
    params = replace(biased(llm, think_close=-100.0), seed=2, grammar=NUMBER, logprobs=1)
    path = chat_checkpoint(tmp_path, max_position_embeddings=4096)
    with LLM(path, config=replace(CONFIG, **change)) as other:
        for budget in (0, 1, 20):
            wish = Thinking("on", budget)
            one, two = ask(llm, params, wish), ask(other, params, wish)
            sentence = one.usage.reasoning_tokens - budget
            assert one.token_ids == two.token_ids and one.thinking.stop == "budget"
            assert one.kinds[:budget] == ("reasoning",) * budget and 0 < sentence < 40
            assert json.loads(one.content)["n"] in (1, 2)


def test_05_no_budget_cuts_into_a_tool_call(llm: LLM):
    """vllm#44676: </think> is forced into the arguments of a call, three times of four."""
    ids, cut = llm.requests.ids, 0
    for seed in range(12):
        params = replace(biased(llm, tool_open=5.0), seed=seed, max_tokens=400)
        done = ask(llm, params, Thinking("on", budget=15, answer_reserve=60), ADD)
        if ids.tool_open not in done.token_ids:
            continue
        at = done.token_ids.index(ids.tool_open)
        assert ids.think_close in done.token_ids[:at] and ids.think_close not in done.token_ids[at:]
        assert done.tool_calls and json.loads(done.tool_calls[0].arguments)["b"] in ("x", "y")
        cut += len(done.token_ids) > 15 > done.usage.reasoning_tokens
    assert cut >= 3, "calls must be open where the budget would have ended"


def test_06_what_is_forced_is_reasoning(llm: LLM):
    """vllm#39697: the sentence that ends a thought appears in the answer."""
    for budget in (0, 3, 11, 40):
        done = ask(llm, biased(llm, think_close=-100.0), Thinking("on", budget=budget))
        assert done.reasoning.endswith("based on the thinking directly now.")
        assert SENTENCE not in done.content and "</think>" not in done.content


def test_07_budgets_hold_in_later_turns_too(llm: LLM):
    """vllm#43708: from the second turn on old thoughts count, or the budget is not applied at all."""
    turns = [Message("user", "Add.")]
    for turn in range(3):
        done = llm.chat(turns, endless(llm, max_tokens=900), Thinking("on", budget=25))
        assert done.thinking.stop == "budget" and done.kinds[:25] == ("reasoning",) * 25
        assert 25 < done.usage.reasoning_tokens < 60
        turns += [Message("assistant", "", f"long thought {turn} " * 9), Message("tool", "5")]
    assert llm.template.encode(turns).count(llm.requests.ids.think_close) == 3


def test_08_thoughts_never_eat_the_answer(llm: LLM):
    """lms#1990, vllm users of max_tokens everywhere: content "" and finish_reason "length"."""
    for most in (5, 8, 13, 40, 100):
        for name in ("think_close", "think_open"):
            done = ask(llm, replace(biased(llm, **{name: -100.0}), max_tokens=most), ON)
            assert done.content.strip() and done.usage.completion_tokens <= most


# --- modes ---


def test_09_without_a_thought_everything_is_content(llm: LLM):
    """vllm#17609, vllm#19839, sgl#14821: with thinking off the answer arrives as reasoning."""
    for wish, text in ((OFF, "Hi"), (Thinking(), "Hi /no_think")):
        done = llm.chat(text, biased(llm, think_open=-100.0), wish)
        assert done.reasoning == "" and done.content.strip() and done.thinking.mode == "off"
        assert done.usage.reasoning_tokens == 0
    assert ask(llm, biased(llm, think_open=100.0, think_close=100.0), OFF).reasoning == ""


def test_10_a_template_that_opens_the_thought_needs_no_parser(tmp_path: Path):
    """vllm#22507, vllm#29408: thinking-only models write no <think>, and every other parser leaks tags."""
    path = chat_checkpoint(tmp_path, max_position_embeddings=1024)
    file = path / "chat_template.jinja"
    opening = "{{- '<|im_start|>assistant\\n<think>\\n' -}}"
    text = re.sub(r"\{%- if enable_thinking is defined.*?\{%- endif -%\}", "", file.read_text(), flags=re.S)
    head, _, tail = text.rpartition("{{- '<|im_start|>assistant\\n' -}}")
    file.write_text(head + opening + tail)
    with LLM(path, config=replace(CONFIG, max_context=512)) as thinker:
        assert thinker.template.modes.kind == "think"
        for bias in (-100.0, 5.0):
            done = ask(thinker, biased(thinker, think_close=bias), Thinking(budget=20))
            assert done.kinds[0] in ("reasoning", None) and done.content.strip()
            assert "think>" not in done.reasoning + done.content
        with pytest.raises(ControlError, match="always thinks"):
            thinker.chat("Hi", WILD, OFF)


def test_11_structure_holds_with_thinking_off(llm: LLM):
    """vllm#18819, sgl#9282, oll#14645: no end of reasoning is seen, so no grammar starts."""
    for wish in (OFF, Thinking("on", budget=0)):
        done = ask(llm, replace(WILD, grammar=NUMBER), wish)
        assert json.loads(done.content)["n"] in (1, 2) and done.finish_reason == "stop"


def test_12_structure_neither_suppresses_nor_enters_the_thought(llm: LLM):
    """vllm#47027, vllm#50948, oll#11545: no thought at all, or JSON in it."""
    bare = ask(llm, replace(WILD, max_tokens=300), Thinking("on", budget=40))
    done = ask(llm, replace(WILD, max_tokens=300, grammar=NUMBER), Thinking("on", budget=40))
    thought = sum(kind == "reasoning" for kind in bare.kinds)
    assert thought >= 40 and done.token_ids[:thought] == bare.token_ids[:thought]
    assert json.loads(done.content)["n"] in (1, 2) and done.reasoning == bare.reasoning


# --- tools ---


def test_13_a_call_begun_in_a_thought_is_a_call(llm: LLM):
    """vllm#39056, lcpp#23678, lms#2045: it is swallowed as reasoning, and the agent stands still."""
    ids, ended = llm.requests.ids, 0
    (end,) = llm.tokenizer.encode("<|im_end|>", control=True)
    for seed in range(6):
        bias = {ids.tool_open: 9.0, end: 8.0, ids.think_close: -100.0}
        done = ask(llm, replace(WILD, seed=seed, logit_bias=bias), ON, SAY)
        if ids.tool_open not in done.token_ids:
            continue
        assert done.tool_calls and {call.name for call in done.tool_calls} == {"say"}
        assert "tool_call" not in done.reasoning and done.thinking.stop == "natural"
        ended += done.finish_reason == "tool_calls"
    assert ended >= 2


def test_14_a_draft_in_a_thought_is_not_a_call(llm: LLM):
    """lms#1592, verl#4757, qwen3#1459: text like a call inside a thought is executed, twice."""
    draft = '<tool_call>\n{"name": "say", "arguments": {}}\n</tool_call></think>'
    never = biased(llm, think_close=-100.0, tool_open=-100.0)
    with llm.stream("Hi", replace(never, max_tokens=1500), Thinking("on", on_loop="ignore"), [SAY]) as stream:
        stream.hint(draft)
        stream.end_thought()
        done = stream.result()
    assert draft in done.reasoning and not done.tool_calls and not done.malformed
    assert done.usage.reasoning_tokens == done.kinds.count("reasoning") > 20


def test_16_the_stream_joined_is_the_answer(llm: LLM):
    """vllm#17655, vllm#30439, vllm#28297: tags, arguments and tool_choice differ from the answer."""
    for choice in ("auto", "none", "required", "add"):
        for wish in (ON, OFF):
            params = replace(biased(llm, tool_open=4.0), max_tokens=250)
            done = ask(llm, params, wish, ADD, SAY, choice=choice)  # `check` joins the deltas
            again = llm.chat("Hi", params, wish, [ADD, SAY], choice)
            assert (again.token_ids, again.tool_calls) == (done.token_ids, done.tool_calls)
            assert choice != "none" or not done.tool_calls


# --- conversations ---


def test_17_thoughts_come_back_under_any_of_their_names(llm: LLM):
    """vllm#33616, vllm#42664, litellm#26501: the field was renamed, and thoughts are silently dropped."""
    prompts = set()
    for field in ("reasoning_content", "reasoning", "thinking"):
        turns = [
            {"role": "user", "content": "Add."},
            {"role": "assistant", "content": None, field: "I must add."},
            {"role": "tool", "content": "5"},
        ]
        done = llm.chat(turns, WILD, ON)
        prompts.add((done.usage.prompt_tokens, done.token_ids))
    bare = llm.chat([turns[0], {"role": "assistant", "content": ""}, turns[2]], WILD, ON)
    assert len(prompts) == 1 and bare.usage.prompt_tokens < prompts.pop()[0]


@pytest.mark.parametrize(
    "field",
    [
        {"enable_thinking": False},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "none"},
        {"reasoning": {"effort": "none"}},
        {"think": False},
        {"thinking": {"type": "disabled"}},
        {"reasoning_budget": 0},
    ],
    ids=lambda field: next(iter(field)),
)
def test_18_every_spelling_of_off_is_obeyed_and_named(llm: LLM, field: dict[str, object]):
    """lms#632, oll#13154, lcpp#13160, ollama-python#529: the switch is ignored on the compatible endpoint."""
    done = ask(llm, WILD, from_request(field) or ON)
    assert (done.thinking.mode, done.reasoning) == ("off", "")
    assert done.thinking.source.startswith(next(iter(field)))
    with pytest.raises(ControlError, match="contradict"):
        from_request({**field, "thinking_budget": 100})


def test_19_the_next_turn_is_warm_however_long_the_thought_was(llm: LLM):
    """lcpp#22746, ds4#56: the template drops old thoughts, and the cached prefix ends there."""
    turns = [Message("user", "first question " * 10)]
    for budget in (20, 600):
        never = endless(llm, max_tokens=budget + 80)
        done = llm.chat(turns, never, Thinking("on", budget, answer_reserve=20))
        assert done.usage.reasoning_tokens >= budget and at_rest(llm)
        turns += [Message("assistant", done.content, done.reasoning), Message("user", "and then?")]
        following = llm.chat(turns, replace(WILD, max_tokens=8), ON)
        assert following.usage.prompt_tokens - following.usage.cached_tokens < 48
        assert following.cache_miss in ("none", "diverged")


def test_20_thoughts_stay_inside_a_tool_loop_and_go_after_it(llm: LLM):
    """vllm#42664, qwen38#26: a proxy drops them between calls, and the model starts over."""
    loop = [Message("user", "Add."), Message("assistant", "", "I must add 2 and 3."), Message("tool", "5")]
    assert "I must add 2 and 3." in llm.template.render(loop)
    later = [*loop, Message("assistant", "5"), Message("user", "Thanks")]
    assert "I must add 2 and 3." not in llm.template.render(later)


def test_24_the_cost_of_thinking_is_counted(llm: LLM):
    """vllm#14472, vllm#50895: reasoning_tokens is null, or counts tags."""
    for wish in (ON, OFF, Thinking("on", budget=7)):
        done = ask(llm, replace(WILD, max_tokens=100), wish)
        assert done.usage.reasoning_tokens == done.kinds.count("reasoning")
        assert done.usage.completion_tokens == len(done.token_ids)
        assert (done.thinking.seconds > 0) == (wish is not OFF)
        assert done.thinking.seconds <= done.timing.total_s


def test_25_rollouts_are_what_serving_does_token_for_token(nano: LLM):
    """tinker-feedback#47, verl#4757: budgets only while serving; training parses and renders differently."""
    question = [Message("user", "What is 47 * 86?")]
    done = nano.chat(question, SamplingParams(temperature=0.0))
    answered = [*question, Message("assistant", done.content, done.reasoning)]
    prompt = nano.template.encode(question)
    again = nano.template.encode(answered, add_generation_prompt=False)
    assert tuple(again[: len(prompt) + len(done.token_ids)]) == (*prompt, *done.token_ids)
    assert done.content == "4042" and all(done.sampled)
    short = nano.chat(question, SamplingParams(temperature=0.0, logprobs=0), Thinking(budget=20))
    assert short.token_ids[:21] == done.token_ids[:21] and short.thinking.stop == "budget"
    forced = [token for token, sampled in zip(short.token_ids, short.sampled, strict=True) if not sampled]
    assert SENTENCE in nano.tokenizer.decode(forced)
    assert [item is not None for item in short.logprobs] == [*short.sampled]


# --- and three that are asked for often ---


def test_each_mode_has_its_own_sampling_defaults(llm: LLM):
    """Qwen's model cards ask for 0.6 / 0.95 with a thought, 0.7 / 0.8 without; servers have one preset."""
    for wish, temperature, top_p in ((Thinking("on", budget=0), 0.6, 0.95), (OFF, 0.7, 0.8)):
        spelled = SamplingParams(temperature=temperature, top_p=top_p, top_k=20, seed=3, max_tokens=60)
        bare = SamplingParams(seed=3, max_tokens=60)
        assert llm.chat("Hi", bare, wish).token_ids == llm.chat("Hi", spelled, wish).token_ids


def test_switching_the_mode_keeps_the_cached_prompt(llm: LLM):
    """MiaAI-Lab#63: an effort at the head of the prompt empties the cache; here it is the tail."""
    question = "a question of some length, asked twice: " * 6
    first = llm.chat(question, WILD, OFF)
    second = llm.chat(question, WILD, ON)
    assert second.usage.prompt_tokens - second.usage.cached_tokens < 32 < first.usage.prompt_tokens


def test_leaving_ends_the_work_at_once(llm: LLM):
    """1Cat-vLLM#569: the client is gone, and the engine goes on generating."""
    stream = llm.stream("Hi", replace(WILD, max_tokens=3800, ignore_eos=True), OFF)
    next(stream)
    stream.cancel()
    done = stream.result()
    assert done.finish_reason == "abort" and done.usage.completion_tokens < 3800 and at_rest(llm)
