"""The phase machine: the first phase from every kind of prompt, every token's phase, what may come next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_fixtures import qwen

from deepfast.thinking.phases import ControlIds, Phase, PhaseMachine, Step

OPEN, SHUT, CALL, END_CALL, STOP, OTHER = 90, 91, 92, 93, 94, 95
IDS = ControlIds(OPEN, SHUT, CALL, END_CALL, frozenset({STOP}), frozenset({OTHER}))
THINK, ANSWER, TOOL, DONE = Phase.THINK, Phase.ANSWER, Phase.TOOL, Phase.DONE
ids = st.lists(st.sampled_from([1, 2, OPEN, SHUT, CALL, END_CALL, STOP, OTHER]), max_size=30)


def phases(prompt, output):
    """The machine and the steps of a whole output."""
    machine = PhaseMachine(IDS, prompt)
    return machine, [machine.advance(token) for token in output]


@pytest.mark.parametrize(
    ("prompt", "phase", "may_open"),
    [
        ([1, STOP, 2], ANSWER, True),  # hybrid: the model decides
        ([1, STOP, 2, OPEN, 1, SHUT, 1], ANSWER, False),  # no_think: the prompt closed the thought
        ([1, STOP, 2, OPEN, 1], THINK, False),  # a model that always thinks, or mode "on"
        ([OPEN, 1, SHUT, 1, STOP, 2], ANSWER, True),  # an old thought is history
        ([OPEN, 1, SHUT, 1, STOP, 2, OPEN, 1], THINK, False),
        ([OPEN, 1, STOP, 2], ANSWER, True),  # a thought that the end of its turn cut off
        ([], ANSWER, True),
    ],
)
def test_the_first_phase_is_read_from_the_prompt(prompt, phase, may_open):
    """Is a think block open at its end, in the turn that is being written?"""
    machine = PhaseMachine(IDS, prompt)
    assert (machine.phase, machine.may_open, machine.reasoning_tokens) == (phase, may_open, 0)


def test_a_thought_an_answer_a_call_and_the_end():
    """The whole way, token by token."""
    machine, steps = phases([STOP, 1], [OPEN, 1, 2, SHUT, 1, CALL, 2, END_CALL, 1, STOP])
    assert [step.phase for step in steps] == [THINK] * 4 + [ANSWER] + [TOOL] * 3 + [ANSWER, ANSWER]
    assert [token for token, step in enumerate(steps) if step.is_control] == [0, 3, 5, 7, 9]
    assert machine.phase is DONE
    assert machine.reasoning_tokens == 2


@pytest.mark.parametrize("prompt", [[STOP, 1, OPEN, 1, SHUT, 1], [STOP, 1]])
def test_a_stray_think_token_opens_nothing_and_has_no_text(prompt):
    """After the first token, or after a thought that the prompt closed."""
    machine, steps = phases(prompt, [1, OPEN, 2, SHUT])
    assert steps == [Step(ANSWER, control) for control in (False, True, False, True)]
    assert machine.reasoning_tokens == 0


def test_a_prompt_that_closed_the_thought_lets_no_other_begin():
    """no_think: not even as the first token."""
    machine, steps = phases([STOP, 1, OPEN, 1, SHUT, 1], [OPEN, 1])
    assert steps == [Step(ANSWER, True), Step(ANSWER, False)]
    assert machine.phase is ANSWER


def test_a_call_begun_inside_a_thought_ends_the_thought():
    """The call is real, and what follows it is the answer."""
    machine, steps = phases([OPEN], [1, CALL, 2, END_CALL, 3, SHUT, 4])
    assert [step.phase for step in steps] == [THINK, TOOL, TOOL, TOOL, ANSWER, ANSWER, ANSWER]
    assert [step.is_control for step in steps] == [False, True, False, True, False, True, False]
    assert machine.reasoning_tokens == 1


def test_control_tokens_out_of_place_change_nothing():
    """In a thought, in a call, in an answer: no phase moves and no text appears."""
    stray = {
        THINK: ([OPEN], [OPEN, END_CALL, OTHER]),
        TOOL: ([], [OPEN, SHUT, CALL, OTHER]),
        ANSWER: ([OPEN, SHUT], [OPEN, SHUT, END_CALL, OTHER]),
    }
    for phase, (prompt, tokens) in stray.items():
        machine = PhaseMachine(IDS, prompt)
        if phase is TOOL:
            machine.advance(CALL)
        assert [machine.advance(token) for token in tokens] == [Step(phase, True)] * len(tokens)
        assert machine.phase is phase
        assert machine.reasoning_tokens == 0


def test_the_end_of_the_turn_ends_every_phase_unless_it_is_endless():
    """A stop id that ends nothing has no text either."""
    for prompt, before in (([], []), ([OPEN], []), ([], [CALL])):
        machine, _ = phases(prompt, [*before, STOP])
        assert machine.phase is DONE
        assert machine.advance(1) == Step(DONE, True)
        endless = PhaseMachine(IDS, prompt, endless=True)
        for token in before:
            endless.advance(token)
        phase = endless.phase
        assert endless.advance(STOP) == Step(phase, True)
        assert endless.phase is phase


@given(ids, ids)
def test_what_always_holds(prompt, output):
    """DONE is final, reasoning tokens are THINK steps with text, only control ids have none."""
    machine, steps = phases(prompt, output)
    assert (machine.phase is DONE) == (STOP in output)
    assert machine.reasoning_tokens == sum(step == Step(THINK, False) for step in steps)
    alive = output[: output.index(STOP)] if STOP in output else output
    assert [s.is_control for s in steps[: len(alive)]] == [token in IDS.all for token in alive]
    bare = PhaseMachine(ControlIds(None, None, None, None, frozenset()), prompt)
    assert {bare.advance(token) for token in output} <= {Step(ANSWER, False)}


@given(ids, ids)
def test_what_is_misplaced_is_what_would_move_nothing(prompt, output):
    """`misplaced` and `advance` agree about every control id, in every state."""
    machine, _ = phases(prompt, [token for token in output if token != STOP])
    misplaced = machine.misplaced()
    assert misplaced <= IDS.all
    assert STOP not in misplaced
    for token in IDS.all - {STOP}:
        other, _ = phases(prompt, [token for token in output if token != STOP])
        other.advance(token)
        assert (token in misplaced) == (other.phase is machine.phase)


def test_all_control_ids_are_known():
    """Stops and others included, missing ones left out."""
    assert IDS.all == {OPEN, SHUT, CALL, END_CALL, STOP, OTHER}
    assert ControlIds(None, 5, None, None, frozenset({6})).all == {5, 6}


def test_the_genuine_vocabulary_has_all_four():
    """Ids come from the loaded tokenizer."""
    names = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    found = [qwen().control_id(name) for name in names]
    assert None not in found
    assert len(set(found)) == 4
