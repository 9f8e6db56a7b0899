"""From what a caller asks to a Sequence: render, encode, resolve, check.

In: messages or token ids, SamplingParams, Thinking, tools. Out: Sequences that the engine can run; and, after
a turn, the background sequence that lets the next turn start warm. Everything that is wrong with a request is
refused here, in one line. Does not know: blocks, steps, threads.
"""

from __future__ import annotations

import secrets
from collections import abc
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Integral
from typing import NamedTuple

from ..config import BLOCK_SIZE, EngineConfig, resolve_sampling
from ..text.files import TextFiles
from ..text.grammar import Compiled, Grammars
from ..text.messages import Messages, as_messages
from ..text.template import ChatTemplate, Tools
from ..text.tokenizer import Tokenizer
from ..thinking.budget import Budget, Texts
from ..thinking.controls import Plan
from ..thinking.controls import resolve as resolve_thinking
from ..thinking.loops import LoopGuard
from ..thinking.phases import ControlIds, Phase, PhaseMachine
from ..thinking.sentences import Sentences, language_of
from ..types import (
    ContextError,
    Message,
    Role,
    SamplingParams,
    Thinking,
    ToolChoice,
    UsageError,
)
from .output import Emit, Output
from .sequence import Guide, Sequence
from .speculate import Speculator

After = Callable[[Sequence], None]
OPENING, LEAD_IN = "<think>\n", "\n\n"  # how Qwen3 opens a thought, and what it writes before the answer


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages and tools, checked: what the template renders."""

    turns: list[Message]
    tools: Tools | None


class _Planned(NamedTuple):
    """What of a chat is decided before its sampling."""

    asked: Thinking
    must_call: bool
    plan: Plan
    prompt: list[int]


class RequestBuilder:
    """Makes the sequences of one model. Safe to use from any thread."""

    def __init__(
        self, text: TextFiles, tokenizer: Tokenizer, ids: ControlIds, vocab_size: int, settings: EngineConfig
    ) -> None:
        assert settings.max_context is not None
        self.tokenizer, self.ids, self.vocab_size = tokenizer, ids, vocab_size
        self.max_context = settings.max_context
        self.settings = settings
        self.sentences = Sentences.of(text.thinking)
        self._text = text
        self._template = ChatTemplate.of(text, tokenizer) if "default" in text.templates else None
        width = min(tokenizer.num_ids, vocab_size)
        self._grammars = Grammars(tokenizer, width, ids.stops)
        self._encode = lru_cache(maxsize=64)(self._encode_ours)

    @property
    def template(self) -> ChatTemplate:
        """The model's chat template. Raises ModelError when the checkpoint has none."""
        if self._template is None:
            self._template = ChatTemplate.of(self._text, self.tokenizer)
        return self._template

    def conversation(self, messages: Messages, tools: Tools | None) -> Conversation:
        """Check messages and tools. Raises UsageError naming what is wrong."""
        if tools and self.ids.tool_open is None:
            raise UsageError("this model's vocabulary has no <tool_call>: it cannot use tools.")
        if tools and not self.template.reads_tools:
            raise UsageError("this model's chat template ignores tools. Leave them out.")
        if wrong := [tool for tool in tools or () if not isinstance(tool, Mapping)]:
            raise UsageError(
                f"a tool is {type(wrong[0]).__name__}. Give schemas in the OpenAI shape, as dicts."
            )
        # Ours alone: it is rendered once more when the turn has ended.
        return Conversation(as_messages(messages), deepcopy(list(tools)) if tools else None)

    def chat(
        self,
        conversation: Conversation,
        params: SamplingParams | None,
        thinking: Thinking | None,
        tool_choice: ToolChoice,
        emit: Emit,
        after: After | None = None,
    ) -> Sequence:
        """A sequence for the assistant's next turn. Raises UsageError (ControlError, ContextError) if it
        cannot run."""
        asked, must_call, plan, prompt = self._planned(conversation, thinking, tool_choice)
        resolved = self._resolved(params, thinks=plan.thinks)
        max_new = self._max_new(len(prompt), resolved.max_tokens)
        if must_call and max_new == 1:
            raise ContextError(
                "one new token can not hold a tool call. Allow more, or use tool_choice='auto'."
            )
        machine = PhaseMachine(self._ids_with(resolved), prompt, endless=resolved.ignore_eos)
        machine.may_open &= not must_call
        opened = machine.phase is Phase.THINK
        budget = self._budget(asked, plan, conversation.turns, max_new, opened=opened)
        guide = Guide(
            mode="on" if plan.thinks else "off",
            source=plan.source,
            budget=budget,
            loops=LoopGuard() if budget is not None and asked.on_loop == "close" else None,
            answer=self._grammars.answer(resolved.grammar).matcher() if resolved.grammar else None,
            tool_call=self._tool_grammar(conversation.tools, tool_choice),
            allow_calls=tool_choice != "none" and not (resolved.grammar and not conversation.tools),
            must_call=must_call,
            after_thought=self._encode(LEAD_IN),
            blank_ids=self.tokenizer.blank_ids,
        )
        return self._sequence(prompt, resolved, max_new, machine, guide, emit, after)

    def _planned(
        self, conversation: Conversation, thinking: Thinking | None, tool_choice: ToolChoice
    ) -> _Planned:
        asked = Thinking() if thinking is None else thinking
        if not isinstance(asked, Thinking):
            raise UsageError(f"thinking is {type(asked).__name__}. Give Thinking(...), or None.")
        must_call = self._must_call(tool_choice, conversation.tools)
        kind, opens = self.template.modes
        plan = resolve_thinking(asked, kind, conversation.turns, opens=opens)
        return _Planned(asked, must_call, plan, self._prompt(conversation, plan, must_call))

    def prompt_ids(
        self, conversation: Conversation, thinking: Thinking | None, tool_choice: ToolChoice = "auto"
    ) -> list[int]:
        """What `chat` would compute before the first new token. Raises UsageError as it does."""
        return self._planned(conversation, thinking, tool_choice).prompt

    def _prompt(self, conversation: Conversation, plan: Plan, must_call: bool) -> list[int]:
        """The rendered conversation. Where the model would decide whether to think, but the thought is wanted
        for sure, or a call must follow it, the thought is opened here."""
        prompt = self.template.encode(
            conversation.turns, tools=conversation.tools, enable_thinking=plan.enable_thinking
        )
        machine = PhaseMachine(self.ids, prompt)
        wanted = plan.open_thought or (must_call and plan.thinks)
        if wanted and machine.phase is not Phase.THINK and machine.may_open:
            prompt += self._encode(OPENING)
        return prompt

    def _tool_grammar(self, tools: Tools | None, choice: ToolChoice) -> Compiled | None:
        """What a call must match, if one may be made."""
        if not tools or choice == "none":
            return None
        named = choice if choice not in ("auto", "none", "required") else None
        ends = frozenset() if self.ids.tool_close is None else frozenset({self.ids.tool_close})
        return self._grammars.tool_call(tools, named, ends=ends)

    def raw(
        self,
        prompt: abc.Sequence[int],
        params: SamplingParams | None,
        emit: Emit,
        number: int = 0,
        *,
        whole: bool = False,
    ) -> Sequence:
        """Ids in, ids out: no template, no control. whole: all text comes as content, that of control tokens
        too. Raises UsageError, naming prompt `number`."""
        good_ids = (isinstance(token, Integral) and 0 <= token < self.vocab_size for token in prompt)
        bad = [token for token, good in zip(prompt, good_ids, strict=True) if not good]
        if len(prompt) == 0 or bad:
            what = f"holds id {bad[0]}" if bad else "is empty"
            raise UsageError(f"prompt {number} {what}. Give ids from 0 to {self.vocab_size - 1}.")
        resolved = self._resolved(params, thinks=True)
        if resolved.grammar is not None:
            raise UsageError("a grammar needs a chat: ids in, ids out knows no answer. Use chat().")
        max_new = self._max_new(len(prompt), resolved.max_tokens)
        machine = PhaseMachine(self.ids, prompt, endless=resolved.ignore_eos)
        ids = [int(token) for token in prompt]
        return self._sequence(ids, resolved, max_new, machine, None, emit, None, whole=whole)

    def next_turn(self, conversation: Conversation, seq: Sequence) -> Sequence | None:
        """The background sequence that computes what the next turn's prompt is sure to begin with: the
        conversation with this answer in it, as the template writes it (mostly without the thought)."""
        done = seq.completion()
        answer = Message("assistant", done.content, done.reasoning or None, done.tool_calls)
        turns = [*conversation.turns, answer]
        follow: Role = "tool" if done.tool_calls else "user"
        a, b = (
            self.template.encode([*turns, Message(follow, text)], tools=conversation.tools)
            for text in ("a", "b")
        )
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        same -= same % BLOCK_SIZE  # less than a block is never found again
        if same == 0 or same > self.max_context:
            return None
        machine = PhaseMachine(self.ids, a[:same])
        output = Output(self.tokenizer, (), lambda delta: None, "")
        return Sequence(a[:same], SamplingParams(), 0, 0, machine, output)

    def encode_hint(self, text: str) -> list[int]:
        """Words to be put into a thought, on lines of their own."""
        if not isinstance(text, str) or not text.strip():
            raise UsageError("the hint is empty, or no text. Say something.")
        return self.tokenizer.encode(f"\n\n{text.strip()}\n\n")

    def _must_call(self, choice: ToolChoice, tools: Tools | None) -> bool:
        if choice in ("auto", "none"):
            return False
        if not isinstance(choice, str):
            raise UsageError(f"tool_choice={choice!r} is no text. Use 'auto', 'none', 'required' or a name.")
        if not tools:
            raise UsageError(f"tool_choice={choice!r} needs tools. Give some, or use 'auto'.")
        return True

    def _resolved(self, params: SamplingParams | None, *, thinks: bool) -> SamplingParams:
        if params is not None and not isinstance(params, SamplingParams):
            raise UsageError(f"params is {type(params).__name__}. Give SamplingParams(...), or None.")
        resolved = resolve_sampling(params or SamplingParams(), thinking=thinks)
        for name, ids in (("logit_bias", resolved.logit_bias), ("stop_token_ids", resolved.stop_token_ids)):
            if bad := [token for token in ids if not 0 <= token < self.vocab_size]:
                limit = self.vocab_size - 1
                raise UsageError(f"{name} holds id {bad[0]}. Give ids of the vocabulary, 0 to {limit}.")
        if resolved.grammar is not None and resolved.ignore_eos:
            raise UsageError("ignore_eos and a grammar contradict each other: a whole answer ends. Drop one.")
        own = {self.ids.think_open, self.ids.think_close, self.ids.tool_open, self.ids.tool_close}
        if wrong := own.intersection(resolved.stop_token_ids):
            raise UsageError(
                f"stop_token_ids holds {wrong.pop()}, a token of thoughts or tools. Leave it out."
            )
        return resolved

    def _ids_with(self, params: SamplingParams) -> ControlIds:
        """The control ids, those among stop_token_ids as ends of the turn."""
        ends = self.ids.others.intersection(params.stop_token_ids)
        return (
            replace(self.ids, stops=self.ids.stops | ends, others=self.ids.others - ends)
            if ends
            else self.ids
        )

    def _budget(
        self, asked: Thinking, plan: Plan, turns: list[Message], max_new: int, *, opened: bool
    ) -> Budget | None:
        """None where the model has no thoughts, or need not think and has no room for it."""
        if self.template.modes.kind == "no_think":
            return None
        texts = self._texts(turns)
        if not opened and not plan.thinks and not Budget.fits(max_new, asked.answer_reserve, texts):
            return None
        return Budget(
            asked.budget,
            max_new,
            asked.answer_reserve,
            texts,
            min_tokens=asked.min_tokens,
            soft_landing=asked.soft_landing,
        )

    def _texts(self, turns: list[Message]) -> Texts:
        """What may be forced into a thought, in the language of the question."""
        said = next((turn.content or "" for turn in reversed(turns) if turn.role == "user"), "")
        language = language_of(said)
        return Texts(
            stop_ids=self._encode(self.sentences.stop(language)),
            close_ids=self._encode(self.sentences.close),
            wait_ids=self._encode(self.sentences.wait(language)),
        )

    def _encode_ours(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, control=True))

    def _max_new(self, num_prompt: int, asked: int | None) -> int:
        room = self.max_context - num_prompt
        if room < 1:
            raise ContextError(
                f"the prompt has {num_prompt} tokens, but the context holds {self.max_context}. "
                "Shorten it or load the model with a longer context."
            )
        limit = self.settings.max_new_tokens
        if asked is not None and limit is not None and asked > limit:
            raise UsageError(f"max_tokens={asked} is above the limit of {limit}. Ask for at most {limit}.")
        if asked is not None and asked > room:
            raise ContextError(
                f"max_tokens={asked} does not fit: the prompt has {num_prompt} tokens and the context holds "
                f"{self.max_context}. Ask for at most {room}.",
                most=room,
            )
        return asked or min(room, limit or room)

    def _sequence(
        self,
        prompt: list[int],
        params: SamplingParams,
        max_new: int,
        machine: PhaseMachine,
        guide: Guide | None,
        emit: Emit,
        after: After | None,
        *,
        whole: bool = False,
    ) -> Sequence:
        seed = secrets.randbits(63) if params.seed is None else params.seed
        # Clients match results to calls by id: another turn must give other ids, the same one the same.
        call_ids = f"call_{hash((seed, *prompt)) % 2**32:08x}"
        strip = params.grammar is None
        output = Output(self.tokenizer, params.stop, emit, call_ids, strip=strip, whole=whole)
        speculator = Speculator(prompt) if self.settings.speculation else None
        return Sequence(prompt, params, max_new, seed, machine, output, guide, speculator, after=after)
