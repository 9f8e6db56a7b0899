"""Thinking: phases from every kind of prompt, a budget that fires once and in time, controls honoured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_fixtures import qwen

from deepfast.config import ANSWER_RESERVE
from deepfast.thinking.budget import CLOSE, STOP_SENTENCE, Budget
from deepfast.thinking.controls import Plan, last_switch, resolve
from deepfast.thinking.phases import ControlIds, Phase, PhaseMachine, Step
from deepfast.types import ContextError, ControlError, Message, Thinking

OPEN, SHUT, CALL, END_CALL, STOP = 90, 91, 92, 93, 94
IDS = ControlIds(OPEN, SHUT, CALL, END_CALL, frozenset({STOP}))
ids = st.lists(st.sampled_from([1, 2, OPEN, SHUT, CALL, END_CALL, STOP]), max_size=30)


def phases(prompt, output):
    """The machine and the steps of a whole output."""
    machine = PhaseMachine(IDS, prompt)
    return machine, [machine.advance(token) for token in output]


@pytest.mark.parametrize(
    ("prompt", "phase", "closed"),
    [
        ([1, STOP, 2], Phase.ANSWER, False),  # hybrid: the model decides
        ([1, STOP, 2, OPEN, 1, SHUT, 1], Phase.ANSWER, True),  # no_think: the prompt closed the thought
        ([1, STOP, 2, OPEN, 1], Phase.THINK, False),  # a model that always thinks, or mode "on"
        ([OPEN, 1, SHUT, 1, STOP, 2], Phase.ANSWER, False),  # an old thought is history
        ([OPEN, 1, SHUT, 1, STOP, 2, OPEN, 1], Phase.THINK, False),
        ([OPEN, 1, STOP, 2], Phase.ANSWER, False),  # a thought that the end of its turn cut off
        ([], Phase.ANSWER, False),
    ],
)
def test_the_first_phase_is_read_from_the_prompt(prompt, phase, closed):
    """Is a think block open at its end, in the turn that is being written?"""
    machine = PhaseMachine(IDS, prompt)
    assert (machine.phase, machine.thought_closed, machine.reasoning_tokens) == (phase, closed, 0)


def test_a_thought_an_answer_a_call_and_the_end():
    """The whole way, token by token."""
    machine, steps = phases([STOP, 1], [OPEN, 1, 2, SHUT, 1, CALL, 2, END_CALL, 1, STOP])
    think, answer, tool = Phase.THINK, Phase.ANSWER, Phase.TOOL
    assert [step.phase for step in steps] == [think] * 4 + [answer] + [tool] * 3 + [answer, answer]
    assert [token for token, step in enumerate(steps) if step.is_control] == [0, 3, 5, 7, 9]
    assert machine.phase is Phase.DONE
    assert machine.thought_closed
    assert machine.reasoning_tokens == 2


@pytest.mark.parametrize("prompt", [[STOP, 1, OPEN, 1, SHUT, 1], [STOP, 1]])
def test_a_stray_think_token_is_content(prompt):
    """After the first token, or after a thought that the prompt closed, <think> opens nothing."""
    machine, steps = phases(prompt, [1, OPEN, 2, SHUT])
    assert steps == [Step(Phase.ANSWER, False)] * 4
    assert machine.reasoning_tokens == 0
    assert not (machine.thought_closed and prompt == [STOP, 1])


def test_a_prompt_that_closed_the_thought_lets_no_other_begin():
    """no_think: even as the first token <think> is content."""
    machine, steps = phases([STOP, 1, OPEN, 1, SHUT, 1], [OPEN, 1])
    assert steps == [Step(Phase.ANSWER, False)] * 2
    assert machine.phase is Phase.ANSWER


def test_delimiters_inside_other_phases_are_text():
    """A call inside a thought is reasoning (for now); think tokens inside a call are its text."""
    _, steps = phases([OPEN], [CALL, 1, END_CALL, OPEN, SHUT, CALL, OPEN, SHUT, CALL, END_CALL])
    assert [step.phase for step in steps] == [Phase.THINK] * 5 + [Phase.TOOL] * 5
    assert [step.is_control for step in steps] == [False] * 4 + [True, True] + [False] * 3 + [True]


@given(ids, ids)
def test_what_always_holds(prompt, output):
    """DONE is final, reasoning tokens are THINK steps without delimiters, a vocabulary may lack tokens."""
    machine, steps = phases(prompt, output)
    assert (machine.phase is Phase.DONE) == (STOP in output)
    assert machine.reasoning_tokens == sum(step == Step(Phase.THINK, False) for step in steps)
    bare = PhaseMachine(ControlIds(None, None, None, None, frozenset()), prompt)
    assert {bare.advance(token) for token in output} <= {Step(Phase.ANSWER, False)}


def test_delimiters_are_all_control_ids():
    """Stops included, missing ones left out."""
    assert IDS.delimiters == {OPEN, SHUT, CALL, END_CALL, STOP}
    assert ControlIds(None, 5, None, None, frozenset({6})).delimiters == {5, 6}


@given(
    budget=st.none() | st.integers(0, 80),
    max_new=st.integers(5, 300),
    reserve=st.none() | st.integers(0, 60),
    opened=st.booleans(),
    num_stop=st.integers(4, 40),
)
def test_the_answer_keeps_its_reserve(budget, max_new, reserve, opened, num_stop):
    """A thought that never ends: forced once, in time, within the budget, with the reserve left."""
    close_ids, stop_ids = (198, SHUT, 271), (*range(num_stop - 1), SHUT)
    if reserve is not None and max(reserve, 1) + 4 > max_new:
        with pytest.raises(ContextError, match=f"{max_new} new tokens"):
            Budget(budget, max_new, reserve, stop_ids, close_ids)
        return
    watch = Budget(budget, max_new, reserve, stop_ids, close_ids)
    thought, generated = 0, 0 if opened else 1
    while not (forced := watch.observe(thought, generated)):
        thought, generated = thought + 1, generated + 1
        assert generated < max_new
    assert forced in (stop_ids, close_ids)
    assert budget is None or thought <= budget
    left = max_new - generated - len(forced)
    assert left >= watch.reserve >= (1 if reserve is None else reserve)
    assert budget is None or thought < budget or forced == stop_ids or left < watch.reserve + num_stop
    assert watch.observe(thought + len(forced), generated + len(forced)) == ()


def test_a_small_allowance_is_not_spent_on_the_sentence():
    """With 32 tokens the bare delimiter leaves room for a thought; the sentence would have left none."""
    watch = Budget(None, 32, 8, range(24), (1, 2, 3))
    assert not any(watch.observe(n, n) for n in range(21))
    assert watch.observe(21, 21) == (1, 2, 3)


def test_the_default_reserve():
    """ANSWER_RESERVE, at most a quarter, at least one token."""
    of = {max_new: Budget(None, max_new, None, range(24), range(3)).reserve for max_new in (5, 40, 10**6)}
    assert of == {5: 1, 40: 10, 10**6: ANSWER_RESERVE}


def test_a_budget_of_zero_closes_at_once():
    """Before the first token of the thought."""
    assert Budget(0, 500, None, range(24), range(3)).observe(0, 0) == tuple(range(24))


@pytest.mark.parametrize(("max_new", "reserve"), [(4, None), (1, None), (100, 97)])
def test_what_can_not_be_closed_and_answered_is_refused(max_new, reserve):
    """The error holds the numbers."""
    with pytest.raises(ContextError, match=f"{max_new} new tokens can not hold a thought"):
        Budget(None, max_new, reserve, range(24), range(3))


def test_the_sentence_in_tokens():
    """As many tokens as the documentation of Qwen3 says, and the closing id is in it."""
    shut = qwen().control_id("</think>")
    assert len(qwen().encode(STOP_SENTENCE, control=True)) == 24
    assert qwen().encode(CLOSE, control=True) == [198, shut, 271]
    assert qwen().encode(STOP_SENTENCE, control=True)[-2:] == [shut, 271]


@pytest.mark.parametrize(
    ("mode", "kind", "plan"),
    [
        ("auto", "hybrid", Plan(None, False, True)),
        ("on", "hybrid", Plan(True, True, True)),
        ("off", "hybrid", Plan(False, False, False)),
        ("auto", "think", Plan(None, False, True)),
        ("on", "think", Plan(True, True, True)),
        ("auto", "no_think", Plan(None, False, False)),
        ("off", "no_think", Plan(False, False, False)),
    ],
)
def test_what_a_mode_does(mode, kind, plan):
    """Mode and kind of the model -> plan."""
    assert resolve(Thinking(mode=mode), kind, [Message("user", "hi")]) == plan


@pytest.mark.parametrize(
    ("thinking", "kind", "text"),
    [
        (Thinking("off"), "think", "always thinks"),
        (Thinking("on"), "no_think", "never thinks"),
        (Thinking("auto", 100), "no_think", "budget=100"),
    ],
)
def test_what_the_model_can_not_obey_is_refused(thinking, kind, text):
    """Never silence."""
    with pytest.raises(ControlError, match=text):
        resolve(thinking, kind, [])


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["hi"], None),
        (["hi /no_think"], False),
        (["/think"], True),
        (["/think /no_think", "你好/think"], True),
        (["/no_think", "see http://x.org/think and /thinking and a/think"], False),
    ],
)
def test_the_last_switch_wins(texts, found):
    """Switches in the text; addresses and paths are none."""
    messages = [Message("user", text) for text in texts]
    assert (
        last_switch([*messages, Message("assistant", "/think /no_think"), Message("tool", "/think")]) is found
    )
    assert resolve(Thinking(), "hybrid", messages).thinks is (found is not False)
    assert resolve(Thinking(mode="on"), "hybrid", messages).thinks
