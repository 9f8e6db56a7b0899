"""Rollouts token for token with a scripted policy; prompts of the reinforced stages and the choice among
them.

In: the tokenizer of the bundled model, answers written by hand. Needs no PyTorch.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import deepfast
from deepfast.train.live import Drawn
from deepfast.train.problems import sample
from deepfast.train.prompts import KINDS, Prompt, Tried, choose, episode, prompts, read_tried
from deepfast.train.rollout import Episode, Rollouts, columns
from deepfast.types import Message, UsageError

BUNDLED = Path(deepfast.__file__).parent / "bundled"
TOOLS = next(p for i in range(99) if len((p := sample("tools", random.Random(i), level=1)).turns) == 4)
STOP = "Considering the limited time"


@pytest.fixture(scope="module")
def rollouts():
    return Rollouts(BUNDLED, context=1500, max_tokens=400)


class Script:
    """A policy that says the next text, as far as it is let; seeds and contexts are noted."""

    def __init__(self, tokenizer, *texts):
        self.tokenizer, self.texts, self.asks = tokenizer, list(texts), []

    def __call__(self, asks):
        self.asks += asks
        drawn = [self.tokenizer.encode(self.texts.pop(0), control=True) for _ in asks]
        return [Drawn(ids[: ask.limit], [-1.0] * len(ids)) for ids, ask in zip(drawn, asks, strict=True)]


def texts_by_mask(rollouts, rollout):
    """What was drawn, what was not."""
    pairs = list(zip(rollout.ids, rollout.mask, strict=True))
    return [rollouts.tokenizer.decode(i for i, mark in pairs if mark == wanted) for wanted in (1, 0)]


def ask(text, **settings):
    return Episode((Message("user", text),), **settings)


def test_tools_are_run_and_their_results_are_not_the_policys_words(rollouts):
    function = TOOLS.turns[1]["tool_calls"][0]["function"]
    arguments = str(function["arguments"]).replace("'", '"')
    call = f'{{"name": "{function["name"]}", "arguments": {arguments}}}'
    call = f"<think>\nx\n</think>\n\n<tool_call>\n{call}\n</tool_call>"
    first, last = f"{call}<|im_end|>", f"<think>\ny\n</think>\n\n{TOOLS.reply}<|im_end|>"
    script = Script(rollouts.tokenizer, first, last)
    (made,) = rollouts.sample([ask(TOOLS.question, problem=TOOLS)], script)
    drawn, others = texts_by_mask(rollouts, made)
    assert drawn == first + last and made.turns == [first, last]
    result = TOOLS.turns[2]["content"]
    assert made.results == [result] and made.length == sum(made.mask)
    assert others == (
        f"\n<|im_start|>user\n<tool_response>\n{result}\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    # The policy went on from exactly what it had said, and the chat template would have shown it just that.
    turns = [Message("user", TOOLS.question), Message("assistant", first.removesuffix("<|im_end|>"))]
    whole = rollouts.template.render([*turns, Message("tool", result)], tools=list(TOOLS.tools))
    assert rollouts.tokenizer.decode(script.asks[1].ids) == whole
    table = columns([ask(TOOLS.question, problem=TOOLS)], [made])
    assert table["env_mask"] == [made.mask] and table["results"] == [[result]]


@pytest.mark.parametrize("broken", ["<tool_call>\n{}\n</tool_call>", "<tool_call>\n", "no call"])
def test_calls_that_cannot_be_read_end_the_episode(rollouts, broken):
    script = Script(rollouts.tokenizer, f"{broken}<|im_end|>")
    (made,) = rollouts.sample([ask(TOOLS.question, problem=TOOLS)], script)
    assert made.results == [] and set(made.mask) == {1}


def test_a_spent_budget_ends_the_thought_and_is_not_the_policys_word(rollouts):
    thought = "<think>\n" + "1+1=2 " * 50
    script = Script(rollouts.tokenizer, thought, "\\boxed{2}<|im_end|>")
    (made,) = rollouts.sample([ask("What is 1+1?", budget=10)], script)
    drawn, forced = texts_by_mask(rollouts, made)
    assert STOP in forced and forced.endswith("\n</think>\n\n") and STOP not in drawn
    assert script.asks[0].limit == 11 and made.mask.index(0) == 11, "<think> and ten tokens"
    assert drawn.endswith("\\boxed{2}<|im_end|>") and len(made.turns) == 1


def test_a_budget_leaves_answers_without_a_thought_alone(rollouts):
    said = "\\boxed{2} is what I say to this question<|im_end|>"
    rest = rollouts.tokenizer.encode(said, control=True)[4:]
    script = Script(rollouts.tokenizer, said, rollouts.tokenizer.decode(rest))
    (made,) = rollouts.sample([ask("What is 1+1?", budget=3)], script)
    assert set(made.mask) == {1} and made.turns == [said]


def test_switches_and_limits(rollouts):
    off = rollouts.tokenizer.decode(rollouts.prompt_ids(ask("q", mode="off")))
    auto = rollouts.tokenizer.decode(rollouts.prompt_ids(ask("q /no_think")))
    assert off.endswith("<think>\n\n</think>\n\n") and auto.endswith("assistant\n")
    (made,) = rollouts.sample([ask("q")], Script(rollouts.tokenizer, "for ever " * 500))
    assert len(made.ids) == 400 and len(made.turns) == 1 and not made.turns[0].endswith("<|im_end|>")
    with pytest.raises(UsageError, match="context of 1500"):
        rollouts.sample([ask("word " * 2000)], Script(rollouts.tokenizer))


def test_every_draw_has_a_seed_of_its_own(rollouts):
    def seeds(key):
        script = Script(rollouts.tokenizer, *["x<|im_end|>"] * 3)
        rollouts.sample([ask("q")] * 3, script, key)
        return [each.seed for each in script.asks]

    assert seeds(1) == seeds(1) and not set(seeds(1)) & set(seeds(2)) and len(set(seeds(1))) == 3


def test_prompts_are_the_same_in_every_run_and_of_every_kind():
    kinds = dict.fromkeys(KINDS, 1.0)
    made = prompts("general", {"sum": 1.0, "tools": 1.0}, kinds, 200)
    assert made[:50] == prompts("general", {"sum": 1.0, "tools": 1.0}, kinds, 50)
    assert {each.kind for each in made} == set(KINDS)
    for prompt in made:
        asked, again = episode(prompt, 3_000_000), episode(prompt, 3_000_000)
        assert asked == again and (asked.problem is None) == (prompt.kind == "outside") == (
            asked.reply is not None
        )
        last = asked.messages[-1].content or ""
        assert (asked.think is False) == (asked.mode == "off" or last.endswith("/no_think"))
        assert (asked.budget is not None) == (prompt.kind == "budget")
    with pytest.raises(UsageError, match="kind of prompt 'loud'"):
        prompts("general", {"sum": 1.0}, {"loud": 1.0}, 1)


def test_only_what_is_solved_at_times_is_chosen_and_a_killed_choice_goes_on(tmp_path):
    candidates = [Prompt("think", "sum", f"s {i}") for i in range(60)]
    asked = []

    def attempt(some):
        asked.extend(some)
        return [Tried(prompt, int(prompt.seed[2:]) % 3, 2) for prompt in some]

    file = tmp_path / "run" / "prompts.jsonl"
    chosen = choose(candidates, 5, 4, attempt, file, lambda text: None)
    assert chosen == [candidates[i] for i in (1, 4, 7, 10, 13)] and len(asked) == 16
    half = file.read_text().splitlines(keepends=True)
    file.write_text("".join(half[:8]) + half[8][:10])  # killed while it wrote
    asked.clear()
    assert choose(candidates, 5, 4, attempt, file, lambda text: None) == chosen
    assert asked == candidates[8:16] and len(read_tried(file)) == 16
    assert choose(candidates, 5, 4, attempt, tmp_path / "other", None) == chosen  # another process writes it
    assert not (tmp_path / "other").exists()
    with pytest.raises(UsageError, match=r"of 60 prompts only 0 are solved at times \(100% of all"):
        choose(candidates, 5, 30, lambda some: [Tried(p, 2, 2) for p in some], tmp_path / "x", lambda t: None)
