"""Thinking-only, instruct-only and hybrid models: what each can do comes from its template and its tokens.

In: one random checkpoint with the templates that the families have, from the question to the last token.
Out: thoughts where the prompt opens them, answers where there are none, refusals that name the wish.
Does not know: names of models.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from checkpoints import chat_checkpoint
from click.testing import CliRunner

from deepfast import LLM, EngineConfig, Message, SamplingParams, Thinking
from deepfast.cli.main import cli
from deepfast.config import NO_THINK_DEFAULTS, THINK_DEFAULTS
from deepfast.model.hub import BUNDLED
from deepfast.thinking.phases import Phase, PhaseMachine
from deepfast.types import ControlError

START = "<|im_start|>assistant\n"
EMPTY = "<think>\n\n</think>\n\n"


class Family(NamedTuple):
    """Which thoughts it has, and how its prompt goes on after START."""

    kind: str
    goes_on: str


HYBRID = (BUNDLED / "chat_template.jinja").read_text(encoding="utf-8")
BODY = HYBRID[: HYBRID.rindex("{%- if add_generation_prompt")]
PLAIN = """{%- for message in messages -%}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' -}}
{%- endfor -%}
"""
CUTTING = """{%- for message in messages -%}
    {%- set content = message.content -%}
    {%- if message.role == 'assistant' and not loop.last -%}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
    {%- endif -%}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>\\n' -}}
{%- endfor -%}
"""
SYSTEM = """{%- if messages[0].role != 'system' -%}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' -}}
{%- endif -%}
"""


def ends(text: str) -> str:
    """A generation prompt that never changes."""
    return f"{{%- if add_generation_prompt -%}}{{{{- {START + text!r} -}}}}{{%- endif -%}}"


FAMILIES = {
    "hybrid": (HYBRID, Family("hybrid", "")),
    "thinking": (BODY + ends("<think>\n"), Family("think", "<think>\n")),
    "instruct": (PLAIN + ends(""), Family("no_think", "")),
    "never thinking": (BODY + ends(EMPTY), Family("no_think", EMPTY)),
    "qwq": (CUTTING + ends("<think>\n"), Family("think", "<think>\n")),
    "qwen2.5": (SYSTEM + PLAIN + ends(""), Family("no_think", "")),
}
QUESTION = [Message("user", "What is 2 + 2?")]
WILD = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=3, max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LLM]]:
    with ExitStack() as stack:
        found = {}
        for name, (template, _) in FAMILIES.items():
            path = chat_checkpoint(tmp_path_factory.mktemp(name), max_position_embeddings=4096)
            (path / "chat_template.jinja").write_text(template, encoding="utf-8")
            config = EngineConfig(max_context=1024, max_kv_tokens=2048, threads=1)
            found[name] = stack.enter_context(LLM(path, config=config))
        yield found


def test_the_modes_come_from_the_template(models: dict[str, LLM]):
    """From what it renders."""
    for name, (_, family) in FAMILIES.items():
        template = models[name].template
        assert template.modes == (family.kind, family.goes_on == "<think>\n"), name
        assert template.render(QUESTION).endswith(START + family.goes_on)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_thought_that_the_prompt_opens_counts_from_its_first_token(models: dict[str, LLM], name: str):
    """And a prompt that closes it, or says nothing, leaves none before the model's own."""
    llm, family = models[name], FAMILIES[name][1]
    machine = PhaseMachine(llm.requests.ids, llm.template.encode(QUESTION))
    assert (machine.phase is Phase.THINK) == (family.kind == "think")
    out = llm.chat(QUESTION, WILD, Thinking(budget=12) if family.kind != "no_think" else None)
    assert len(out.token_ids) == 40
    if family.kind == "think":
        assert out.usage.reasoning_tokens >= 12 and out.reasoning and out.thinking.stop == "budget"
        assert llm.tokenizer.decode(out.token_ids).startswith(out.reasoning[:5])
        assert "<think>" not in out.reasoning and out.content
    elif family.kind == "no_think":
        assert (out.usage.reasoning_tokens, out.thinking.mode) == (0, "off")
        assert out.content and not out.reasoning


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name][1].kind == "think"])
def test_a_model_that_always_thinks_refuses_not_to(models: dict[str, LLM], name: str):
    """By the name of the switch; `on` and a budget are obeyed."""
    llm = models[name]
    with pytest.raises(ControlError, match=r"mode 'off' \(--no-think\).*always thinks.*budget=0"):
        llm.chat(QUESTION, WILD, Thinking(mode="off", source="--no-think"))
    out = llm.chat(QUESTION, WILD, Thinking(mode="on", budget=0))
    assert out.content and out.usage.completion_tokens == 40
    prompt = llm.requests.prompt_ids(llm.requests.conversation(QUESTION, None), Thinking(mode="on"))
    assert llm.tokenizer.decode(prompt).endswith(START + "<think>\n")  # not twice


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name][1].kind == "no_think"])
@pytest.mark.parametrize(
    "wish", [Thinking(mode="on", source="--think"), Thinking(budget=9), Thinking(min_tokens=3)], ids=str
)
def test_a_model_that_never_thinks_refuses_to(models: dict[str, LLM], name: str, wish: Thinking):
    with pytest.raises(ControlError, match="never thinks") as caught:
        models[name].chat(QUESTION, WILD, wish)
    asked = wish.source or "budget=9" if wish.budget else wish.source or "min_tokens=3"
    assert asked in str(caught.value)
    assert models[name].chat(QUESTION, WILD, Thinking(mode="off")).content


def test_a_hybrid_obeys_both(models: dict[str, LLM]):
    llm = models["hybrid"]
    on = llm.chat(QUESTION, WILD, Thinking(mode="on", budget=5))
    off = llm.chat(QUESTION, WILD, Thinking(mode="off"))
    assert on.reasoning and on.usage.reasoning_tokens >= 5
    assert not off.reasoning and off.usage.reasoning_tokens == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_thought_before_is_not_said_again(models: dict[str, LLM], name: str):
    """Whether the thought comes apart or raw in the content; a family without thoughts keeps raw text."""
    template = models[name].template
    ask, again = QUESTION[0], Message("user", "And 3 + 3?")
    apart = template.render([ask, Message("assistant", "four", "zq"), again])
    assert "zq" not in apart and "four<|im_end|>" in apart
    raw = template.render([ask, Message("assistant", "<think>\nzq\n</think>\n\nfour"), again])
    assert ("zq" in raw) == (name in ("instruct", "qwen2.5"))


@pytest.mark.parametrize("name", FAMILIES)
def test_sampling_defaults_are_those_of_the_mode(models: dict[str, LLM], name: str):
    """Of the mode that a plain request gets."""
    thinks = FAMILIES[name][1].kind != "no_think"
    requests = models[name].requests
    seq = requests.chat(requests.conversation(QUESTION, None), None, None, "auto", lambda *_: None)
    wanted = THINK_DEFAULTS if thinks else NO_THINK_DEFAULTS
    assert (seq.params.temperature, seq.params.top_p) == (wanted.temperature, wanted.top_p)


@pytest.mark.parametrize(
    ("name", "switch", "says"),
    [("thinking", "--no-think", "always thinks"), ("instruct", "--think", "never thinks")],
)
def test_the_command_refuses_by_name(tmp_path: Path, name: str, switch: str, says: str):
    """Exit code 2, one line, before anything is computed."""
    path = chat_checkpoint(tmp_path, max_position_embeddings=1024)
    (path / "chat_template.jinja").write_text(FAMILIES[name][0], encoding="utf-8")
    done = CliRunner().invoke(cli, ["run", "-m", str(path), switch, "Why?"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr and f"({switch})" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("factor", "context"), [(None, 512), ("4", 2048), ("1", 512)])
def test_yarn_by_the_command(tmp_path: Path, factor: str | None, context: int):
    """A longer context, and the warning once, apart from the answer."""
    path = chat_checkpoint(tmp_path)
    ask = [
        "run",
        "-m",
        str(path),
        "--no-think",
        "--max-tokens",
        "2",
        "--context",
        str(context),
        "--json",
        "Why?",
    ]
    done = CliRunner().invoke(cli, [*ask, *(["--yarn", factor] if factor else [])])
    assert done.exit_code == 0 and done.stdout.startswith("{")
    assert done.stderr.count("may hurt short texts") == (context == 2048)
    longer = CliRunner().invoke(cli, [*ask, "--context", str(context + 1)])
    assert longer.exit_code == 2 and f"--yarn {-(-2 * (context + 1) // 512) / 2:g}" in longer.stderr
