"""Problems -> documents: token ids with a mask of what is learned, in the formats of each training stage.

In: a checkpoint's tokenizer and chat template, problems, a random generator. Out: plain text (pre-training),
conversations with a thought, without one, with a thought cut short, with tools, with earlier turns, with
small talk (cold start, fusion). Prompts are rendered by the chat template that serving uses, so what is
learned is what is met. It knows no model and no PyTorch.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from deepfast.text.files import TextFiles
from deepfast.text.template import ChatTemplate
from deepfast.text.tokenizer import Tokenizer
from deepfast.thinking.controls import last_switch
from deepfast.thinking.sentences import TABLE, Sentences, language_of
from deepfast.train.problems import TASKS, Problem, sample
from deepfast.train.rewards import END
from deepfast.train.talk import small_talk
from deepfast.types import Message, ToolCall, UsageError

SYSTEM_PROMPTS = ("You are a helpful assistant.", "You are Deepfast.", "你是一个有用的助手。")
STOP_SENTENCE = TABLE["en"][0]
FLAG = {True: "/think", False: "/no_think"}
_CUT_HARD = 0.2  # of the thoughts cut short, those without the sentence that ends them
_LONGEST_HISTORY = 3


class Document(NamedTuple):
    tokens: list[int]
    mask: list[int]  # 1: the token is learned


class Exchange(NamedTuple):
    """One question and what is said to it."""

    question: str
    thought: str
    reply: str


@dataclass(frozen=True)
class Mixture:
    """Shares of the kinds of documents, and of the tasks; they need not sum to one."""

    kinds: Mapping[str, float]  # plain, direct, think, no_think, cut, tools, turns, talk
    tasks: Mapping[str, float] = field(
        default_factory=lambda: {name: 1.0 for name in TASKS if name != "tools"}
    )
    checks: bool = True  # whether thoughts end with their "Check:" line
    own: float = 1.0  # share of the thoughts that are the model's, where it has given samples


def exchange(problem: Problem, checks: bool = True) -> Exchange:
    """The problem as it is taught; without checks its thought ends where the answer is known."""
    lines = problem.trace.split("\n")
    kept = [line for line in lines if checks or not line.startswith("Check:")]
    return Exchange(problem.question, "\n".join(kept or lines), problem.reply)


def as_messages(turns: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The turns of a problem with tools, as the engine's messages."""
    messages = []
    for turn in turns:
        calls = tuple(
            ToolCall(call["function"]["name"], json.dumps(call["function"]["arguments"], ensure_ascii=False))
            for call in turn.get("tool_calls", ())
        )
        messages.append(Message(turn["role"], turn["content"], turn.get("reasoning_content"), calls))
    return messages


class Writer:
    """Turns random problems into documents; equal seeds give equal documents.

    `samples` are thoughts of the model itself that led to right answers (Qwen3 report, section 4.3); in the
    kinds think and cut they take the place of the solvers', or of the mixture's share `own` of them. Raises
    UsageError for a vocabulary without the tokens of thoughts and turns.
    """

    def __init__(
        self,
        checkpoint: Path,
        mixture: Mixture,
        seed: int,
        *,
        parameters: int = 0,
        samples: Sequence[Exchange] = (),
    ) -> None:
        text = TextFiles.from_dir(checkpoint)
        self.tokenizer = Tokenizer.of(text)
        self.template = ChatTemplate.of(text, self.tokenizer)
        self.sentences = Sentences.of(text.thinking)
        for token in ("<think>", "</think>", END):
            if self.tokenizer.control_id(token) is None:
                raise UsageError(f"{checkpoint}: the vocabulary has no {token}. Start from a Qwen3 model.")
        self.mixture, self.parameters, self.samples = mixture, parameters, samples
        self.rng = random.Random(seed)

    def documents(self) -> Iterator[Document]:
        """Endless."""
        kinds, weights = list(self.mixture.kinds), list(self.mixture.kinds.values())
        while True:
            yield from getattr(self, f"_{self.rng.choices(kinds, weights)[0]}")()

    def _problem(self) -> Problem:
        tasks = self.mixture.tasks
        return sample(self.rng.choices(list(tasks), list(tasks.values()))[0], self.rng)

    def _exchange(self) -> Exchange:
        return exchange(self._problem(), self.mixture.checks)

    def _thought(self) -> Exchange:
        """The model's own, or a solver's."""
        if self.samples and self.rng.random() < self.mixture.own:
            return self.rng.choice(self.samples)
        return self._exchange()

    # --- kinds of documents ---

    def _plain(self) -> Iterator[Document]:
        """Pre-training: the question is read, the working and the answer are learned."""
        question, thought, reply = self._exchange()
        yield self._joined(self._encode(f"{question}\n"), f"{thought}\n{reply}<|endoftext|>")

    def _direct(self) -> Iterator[Document]:
        question, _, reply = self._exchange()
        yield self._joined(self._encode(f"{question}\n"), f"{reply}<|endoftext|>")

    def _think(self) -> Iterator[Document]:
        item = self._thought()
        yield self._chat([self._asked(item.question, True)], item, True)

    def _no_think(self) -> Iterator[Document]:
        item = self._exchange()
        yield self._chat([self._asked(item.question, False)], item, False)

    def _cut(self) -> Iterator[Document]:
        """A thought ended from outside at a random token: only the answer is learned."""
        item = self._thought()
        thought = self._encode(f"<think>\n{item.thought}\n")
        hard = self.rng.random() < _CUT_HARD
        ending = self.sentences.close if hard else self.sentences.stop(language_of(item.question))
        prompt = self.template.encode([self._asked(item.question, None)])
        kept = thought[: self.rng.randint(2, len(thought))]
        yield self._joined(prompt + kept + self._encode(ending), f"{item.reply}{END}")

    def _turns(self) -> Iterator[Document]:
        """Earlier turns, with flags of their own; the last flag is followed."""
        thinking = self.rng.random() < 0.5
        history: list[Message] = []
        for _ in range(self.rng.randint(1, _LONGEST_HISTORY)):
            earlier = self._any()
            flag = self.rng.choice((True, False, None))
            history += [self._asked(earlier.question, flag, self.rng.random() < 0.5)]
            history += [Message("assistant", earlier.reply)]
        item = self._any()
        must = (thinking and last_switch(history) is False) or self.rng.random() < 0.4
        yield self._chat([*history, self._asked(item.question, thinking, must)], item, thinking)

    def _talk(self) -> Iterator[Document]:
        item = self._small_talk()
        thinking = self.rng.random() < 0.5
        yield self._chat([self._asked(item.question, thinking)], item, thinking)

    def _tools(self) -> Iterator[Document]:
        """A conversation with tools: one document, in which all answers of the model are learned. Without
        thinking one for each answer: the empty thought of its prompt is not there in the next one's.
        """
        problem = sample("tools", self.rng)
        turns, end = as_messages(problem.turns), self._id(END)
        render = partial(self.template.encode, tools=problem.tools)
        places = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
        if self.rng.random() < 0.6:
            tokens = render(turns, add_generation_prompt=False)
            mask = [0] * len(tokens)
            for index in places:
                start = len(render(turns[:index]))
                stop = tokens.index(end, start) + 1
                mask[start:stop] = [1] * (stop - start)
            yield Document(tokens[:stop], mask[:stop])
            return
        bare = [_without_thought(turn) for turn in turns]
        for index in places:
            before, prompt = bare[:index], render(bare[:index], enable_thinking=False)
            whole = render([*before, turns[index]], add_generation_prompt=False)
            learned = self._after_thought(whole[len(render(before)) :])
            yield _document(prompt, learned[: learned.index(end) + 1])

    # --- pieces ---

    def _any(self) -> Exchange:
        talks = "talk" in self.mixture.kinds and self.rng.random() < 0.1
        return self._small_talk() if talks else self._exchange()

    def _small_talk(self) -> Exchange:
        talk = small_talk(self.rng, "train", self.parameters)
        return Exchange(talk.question, talk.thought, talk.reply)

    def _asked(self, question: str, thinking: bool | None, must: bool = False) -> Message:
        """The question, with a flag now and then, or because it must have one."""
        rng = self.rng
        if thinking is None or (rng.random() >= 0.2 and not must):
            return Message("user", question)
        flag = FLAG[thinking]
        return Message("user", f"{flag} {question}" if rng.random() < 0.1 else f"{question} {flag}")

    def _chat(self, messages: list[Message], item: Exchange, thinking: bool) -> Document:
        """The conversation up to `item`, whose answer is learned.

        Without thinking: where the last flag says so, the model learns to close its thought itself; else the
        prompt closes it (the hard switch).
        """
        if self.rng.random() < 0.08:
            messages = [self._system(thinking, last_switch(messages) is None), *messages]
        if thinking:
            text = f"<think>\n{item.thought}\n</think>\n\n{item.reply}{END}"
            return self._joined(self.template.encode(messages), text)
        if last_switch(messages) is False:
            text = f"<think>\n\n</think>\n\n{item.reply}{END}"
            return self._joined(self.template.encode(messages), text)
        return self._joined(self.template.encode(messages, enable_thinking=False), f"{item.reply}{END}")

    def _system(self, thinking: bool, free: bool) -> Message:
        """A system prompt; where no flag follows it may hold one, or nothing else."""
        told = self.rng.choice(SYSTEM_PROMPTS)
        if free and self.rng.random() < 0.6:
            flag = FLAG[thinking]
            told = flag if self.rng.random() < 0.3 else f"{told} {flag}"
        return Message("system", told)

    def _after_thought(self, answer: list[int]) -> list[int]:
        """The ids after the closed thought and the empty line behind it."""
        close = self._id("</think>")
        if close not in answer:
            return answer
        rest = answer[answer.index(close) + 1 :]
        blank = self._encode("\n\n")
        return rest[len(blank) :] if rest[: len(blank)] == blank else rest

    def _joined(self, prompt: list[int], answer: str) -> Document:
        return _document(prompt, self._encode(answer))

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, control=True)

    def _id(self, token: str) -> int:
        (found,) = self._encode(token)
        return found


def _document(prompt: list[int], learned: list[int]) -> Document:
    return Document(prompt + learned, [0] * len(prompt) + [1] * len(learned))


def _without_thought(message: Message) -> Message:
    return Message(message.role, message.content, None, message.tool_calls)
