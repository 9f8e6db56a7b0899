"""Every spelling of a thinking control is one Thinking; the model obeys it or the request is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfast.thinking.controls import (
    CONTROL_FIELDS,
    EFFORTS,
    LARGEST_THOUGHT,
    Plan,
    from_request,
    last_switch,
    resolve,
)
from deepfast.types import ControlError, Message, Thinking

ON, OFF, AUTO = {"mode": "on"}, {"mode": "off"}, {"mode": "auto"}


@pytest.mark.parametrize(
    ("fields", "meant", "source"),
    [
        ({"enable_thinking": True}, ON, "enable_thinking"),
        ({"enable_thinking": False}, OFF, "enable_thinking"),
        (
            {"chat_template_kwargs": {"enable_thinking": False}},
            OFF,
            "chat_template_kwargs.enable_thinking",
        ),
        ({"chat_template_kwargs": {"thinking": True}}, ON, "chat_template_kwargs.thinking"),
        (
            {"chat_template_kwargs": {"thinking_budget": 9}},
            {"budget": 9},
            "chat_template_kwargs.thinking_budget",
        ),
        (
            {"chat_template_kwargs": {"reasoning_effort": "none"}},
            OFF,
            "chat_template_kwargs.reasoning_effort",
        ),
        ({"reasoning_effort": "none"}, OFF, "reasoning_effort"),
        ({"reasoning_effort": "minimal"}, ON | {"budget": 1024}, "reasoning_effort"),
        ({"reasoning_effort": "max"}, ON | {"budget": LARGEST_THOUGHT}, "reasoning_effort"),
        ({"reasoning_effort": 0.0}, OFF, "reasoning_effort"),
        ({"reasoning_effort": 0}, OFF, "reasoning_effort"),
        ({"reasoning_effort": 0.5}, ON | {"budget": 19_456}, "reasoning_effort"),
        ({"reasoning_effort": 1e-9}, ON | {"budget": 1}, "reasoning_effort"),
        ({"reasoning": {"effort": "low"}}, ON | {"budget": 4096}, "reasoning.effort"),
        ({"reasoning": {"max_tokens": 300}}, {"budget": 300}, "reasoning.max_tokens"),
        ({"reasoning": {"enabled": False}}, OFF, "reasoning.enabled"),
        ({"think": True}, ON, "think"),
        ({"think": False}, OFF, "think"),
        ({"think": "high"}, ON | {"budget": 32_768}, "think"),
        ({"thinking": True}, ON, "thinking"),
        ({"thinking": False}, OFF, "thinking"),
        ({"thinking": {"type": "disabled"}}, OFF, "thinking.type"),
        ({"thinking": {"type": "adaptive"}}, AUTO, "thinking.type"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2048}},
            ON | {"budget": 2048},
            "thinking.type, thinking.budget_tokens",
        ),
        ({"thinking_budget": 0}, {"budget": 0}, "thinking_budget"),
        ({"thinking_token_budget": 7}, {"budget": 7}, "thinking_token_budget"),
        ({"custom_params": {"thinking_budget": 7}}, {"budget": 7}, "custom_params.thinking_budget"),
        ({"reasoning_budget_tokens": 7}, {"budget": 7}, "reasoning_budget_tokens"),
        ({"thinking_budget_tokens": -1}, AUTO, "thinking_budget_tokens"),
        ({"reasoning_budget": -1}, AUTO, "reasoning_budget"),
        ({"reasoning_budget": 0}, OFF, "reasoning_budget"),
        ({"reasoning_budget": 5}, {"budget": 5}, "reasoning_budget"),
        ({"thinking": {"mode": "auto", "answer_reserve": 5}}, {"answer_reserve": 5}, None),
        (
            {"thinking": {"on_loop": "ignore", "soft_landing": 64}},
            {"on_loop": "ignore", "soft_landing": 64},
            None,
        ),
        (
            {"thinking": {"mode": "on", "budget": 9, "min_tokens": 3}},
            ON | {"budget": 9, "min_tokens": 3},
            None,
        ),
    ],
)
def test_every_spelling_is_understood_and_named(fields, meant, source):
    """A request's field -> what is asked, and where that came from. Other fields are nobody's business."""
    found = from_request(fields | {"temperature": 1, "messages": []})
    expected = source or ", ".join(f"thinking.{key}" for key in fields["thinking"])
    assert found == Thinking(**meant, source=expected)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model": "m", "max_tokens": 5},
        dict.fromkeys(CONTROL_FIELDS),
        {"chat_template_kwargs": {"preserve_thinking": True}, "custom_params": {"other": 1}},
        {"thinking": {}, "reasoning": {"effort": None, "summary": None}},
    ],
)
def test_no_control_is_none(fields):
    """null is absent, everywhere; shared objects may hold other people's keys."""
    assert from_request(fields) is None


def test_every_top_level_field_is_exported():
    """A server refuses what is in neither list."""
    assert CONTROL_FIELDS == {
        "chat_template_kwargs",
        "custom_params",
        "enable_thinking",
        "reasoning",
        "reasoning_budget",
        "reasoning_budget_tokens",
        "reasoning_effort",
        "think",
        "thinking",
        "thinking_budget",
        "thinking_budget_tokens",
        "thinking_token_budget",
    }


def test_efforts_grow_and_stay_within_what_was_trained():
    """The words are an order."""
    budgets = list(EFFORTS.values())
    assert budgets == sorted(budgets)
    assert 1024 <= budgets[0]
    assert budgets[-1] == LARGEST_THOUGHT


@pytest.mark.parametrize(
    "fields",
    [
        {
            "enable_thinking": True,
            "think": True,
            "thinking": {"type": "enabled"},
            "reasoning": {"enabled": True},
        },
        {"thinking_budget": 4096, "reasoning_effort": "low"},
        {"reasoning_effort": "max", "think": "xhigh"},
        {"enable_thinking": False, "thinking_budget": 0, "reasoning_budget": 0},
        {"enable_thinking": False, "reasoning_budget": -1},
        {"thinking": {"type": "adaptive"}, "enable_thinking": True},
        {"thinking_budget": 5, "thinking": {"budget": 5, "budget_tokens": 5}},
        {"think": True, "thinking_budget": 0},
    ],
)
def test_spellings_that_agree_are_fine(fields):
    """And all of them are named."""
    found = from_request(fields)
    assert {name.partition(".")[0] for name in found.source.split(", ")} == set(fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"enable_thinking": True, "think": False}, "enable_thinking=True and think=False"),
        ({"enable_thinking": False, "thinking_budget": 9}, "enable_thinking=False and thinking_budget=9"),
        ({"reasoning_effort": "none", "think": "low"}, "reasoning_effort='none' and think='low'"),
        ({"reasoning_effort": "low", "thinking_budget": 9}, "reasoning_effort='low' and thinking_budget=9"),
        ({"reasoning_budget": 0, "enable_thinking": True}, "enable_thinking=True and reasoning_budget=0"),
        ({"reasoning_budget": -1, "thinking_budget": 9}, "thinking_budget=9 and reasoning_budget=-1"),
        ({"thinking_budget": 9, "thinking_token_budget": 8}, "thinking_budget=9 and thinking_token_budget=8"),
        (
            {"thinking": {"type": "disabled", "budget_tokens": 9}},
            "thinking.type='disabled' and thinking.budget_tokens=9",
        ),
        ({"thinking": {"mode": "off", "min_tokens": 9}}, "thinking.mode='off' and thinking.min_tokens=9"),
        ({"think": False, "thinking": {"soft_landing": 9}}, "think=False and thinking.soft_landing=9"),
        (
            {"thinking": {"min_tokens": 9}, "thinking_budget": 8},
            "thinking_budget=8 and thinking.min_tokens=9",
        ),
        (
            {"reasoning": {"enabled": False, "effort": "low"}},
            "reasoning.effort='low' and reasoning.enabled=False",
        ),
    ],
)
def test_spellings_that_contradict_each_other_are_both_named(fields, words):
    """With their values, in one line, in the order of the table or the other."""
    one, two = words.split(" and ")
    with pytest.raises(ControlError, match="contradict each other") as caught:
        from_request(fields)
    assert str(caught.value).startswith((f"{one} and {two} ", f"{two} and {one} "))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"enable_thinking": "false"}, "enable_thinking='false' is not understood. Give true or false"),
        ({"enable_thinking": 1}, "enable_thinking=1"),
        ({"chat_template_kwargs": {"enable_thinking": 0}}, "chat_template_kwargs.enable_thinking=0"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs='x' is not understood. Give an object"),
        ({"custom_params": []}, r"custom_params=\[\] is not understood. Give an object"),
        ({"reasoning_effort": "lots"}, "'none', 'minimal', 'low', 'medium', 'high', 'xhigh' or 'max'"),
        ({"reasoning_effort": 1}, "number from 0 to below 1"),
        ({"reasoning_effort": -0.1}, "reasoning_effort=-0.1"),
        ({"reasoning_effort": float("nan")}, "reasoning_effort=nan"),
        ({"reasoning_effort": True}, "reasoning_effort=True"),
        ({"reasoning_effort": ["low"]}, "reasoning_effort="),
        ({"reasoning": "high"}, "reasoning='high' is not understood. Give an object"),
        ({"reasoning": {"exclude": True}}, "reasoning has the unknown key 'exclude'. Use effort, max_tokens"),
        ({"think": 0.5}, "think=0.5"),
        ({"thinking": 3}, "thinking=3 is not understood. Give an object, true or false"),
        ({"thinking": "on"}, "thinking='on'"),
        ({"thinking": {"type": "maybe"}}, "Give 'enabled', 'disabled' or 'adaptive'"),
        ({"thinking": {"type": ["enabled"]}}, "thinking.type="),
        ({"thinking": {"mode": True}}, "thinking.mode=True is not understood. Give 'on', 'off' or 'auto'"),
        ({"thinking": {"budget": -1}}, "thinking.budget=-1 is not understood"),
        ({"thinking": {"min_tokens": 1.5}}, "thinking.min_tokens=1.5"),
        ({"thinking": {"on_loop": "kill"}}, "Give 'close' or 'ignore'"),
        ({"thinking": {"budgets": 5}}, "thinking has the unknown key 'budgets'. Use type, budget_tokens"),
        ({"thinking_budget": True}, "thinking_budget=True is not understood. Give a whole number"),
        ({"thinking_budget": "512"}, "thinking_budget='512'"),
        ({"thinking_budget": -1}, "thinking_budget=-1"),
        ({"reasoning_budget": -2}, "reasoning_budget=-2 is not understood. Give .* -1 for no limit"),
        ({"think": "x" * 1000}, r"think='x+\.\.\. is not understood"),
    ],
)
def test_wrong_values_are_refused_by_name(fields, words):
    """The field, the value, what is allowed; in one line."""
    with pytest.raises(ControlError, match=words) as caught:
        from_request(fields)
    assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2**40)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["on", "off", "auto", "enabled", "low", "none", "close"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "mode", "budget", "effort", "enable_thinking", "x"]), inner
        )
    ),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(CONTROL_FIELDS)), json_values, max_size=4))
def test_any_json_is_a_thinking_or_a_control_error_in_one_line(fields):
    """Never another exception."""
    try:
        found = from_request(fields)
    except ControlError as error:
        assert len(str(error).splitlines()) == 1
        return
    assert found is None or isinstance(found, Thinking)


# --- what the model does with it ---


@pytest.mark.parametrize(
    ("mode", "kind", "plan"),
    [
        ("auto", "hybrid", Plan(None, False, True, "default")),
        ("on", "hybrid", Plan(True, True, True, "mode")),
        ("off", "hybrid", Plan(False, False, False, "mode")),
        ("auto", "think", Plan(None, False, True, "model")),
        ("on", "think", Plan(True, True, True, "mode")),
        ("auto", "no_think", Plan(None, False, False, "model")),
        ("off", "no_think", Plan(False, False, False, "mode")),
    ],
)
def test_what_a_mode_does(mode, kind, plan):
    """Mode and kind of the model -> plan; a client's own spelling is its source."""
    messages = [Message("user", "hi")]
    assert resolve(Thinking(mode=mode), kind, messages) == plan
    assert resolve(Thinking(mode=mode, source="think"), kind, messages) == plan._replace(source="think")


@pytest.mark.parametrize(
    ("thinking", "kind", "text"),
    [
        (Thinking("off"), "think", "always thinks"),
        (Thinking("off", source="enable_thinking"), "think", r"mode 'off' \(enable_thinking\) is not"),
        (Thinking("on"), "no_think", "never thinks"),
        (Thinking("auto", 100), "no_think", "budget=100"),
        (Thinking(min_tokens=100), "no_think", "min_tokens=100"),
        (Thinking(soft_landing=100), "no_think", "soft_landing=100"),
    ],
)
def test_what_the_model_can_not_obey_is_refused(thinking, kind, text):
    """Never silence."""
    with pytest.raises(ControlError, match=text):
        resolve(thinking, kind, [])


def test_a_least_thought_and_no_think_in_the_text_contradict_each_other():
    """A budget is only an upper limit; a hard switch wins over the text."""
    messages = [Message("user", "hi /no_think")]
    with pytest.raises(ControlError, match="min_tokens=5 and /no_think"):
        resolve(Thinking(min_tokens=5), "hybrid", messages)
    assert resolve(Thinking(budget=5), "hybrid", messages) == Plan(None, False, False, "/no_think")
    assert resolve(Thinking("on", min_tokens=5), "hybrid", messages) == Plan(True, True, True, "mode")
    assert resolve(Thinking(min_tokens=5), "think", messages) == Plan(None, False, True, "model")


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
    others = [Message("assistant", "/think /no_think"), Message("tool", "/think")]
    assert last_switch([*messages, *others]) is found
    plan = resolve(Thinking(), "hybrid", messages)
    assert plan.thinks is (found is not False)
    assert plan.source == {None: "default", False: "/no_think", True: "/think"}[found]
    assert resolve(Thinking(mode="on"), "hybrid", messages).thinks
