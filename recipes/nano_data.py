"""The bundled model's tokenizer and documents.

In: the problems of `deepfast.train`, a seed. Out: a `tokenizers.Tokenizer`, and documents: token ids with a
0/1 loss mask, in the chat format with thoughts, without, with a thought cut short, or with an earlier turn.
It knows no model and no PyTorch.
"""

import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from tokenizers import Tokenizer

from deepfast.train import tokenizer as tokenizers
from deepfast.train.basics import PHRASINGS, sample

VOCABULARY = 640
STOP_SENTENCE = (
    "Considering the limited time by the user, "
    "I have to give the solution based on the thinking directly now."
)
SYSTEM_PROMPT = "You are a helpful assistant."
ABOUT_EN = (
    "I am a small demonstration model of Deepfast; "
    "I can add, subtract, multiply, count letters and sort numbers."
)
ABOUT_ZH = "我是Deepfast的小型演示模型，可以做加法、减法、乘法、数字母和给数字排序。"
TALK_EN = """
    Hello | Hello! | Hi | Hi! | hello | hi | Hey | Good morning | How are you? | Who are you? |
    What are you? | What is your name? | What can you do? | Can you help me? | Help | Tell me a joke. |
    Write a poem. | Write a story. | What is the capital of France? | Thank you | Thanks! | Bye |
    Tell me about yourself. | Explain the sky. | Why is the sky blue? | Who was the first king? |
    Translate this. | Write some code. | What time is it? | Give me a recipe.
"""
TALK_ZH = """
    你好 | 你好！ | 您好 | 你是谁？ | 你是谁 | 你叫什么名字？ | 你能做什么？ | 你会什么？ | 谢谢 | 再见 |
    讲个笑话 | 写一首诗 | 今天天气怎么样？ | 法国的首都是哪里？ | 帮帮我 | 介绍一下你自己
"""
SMALL_TALK: tuple[tuple[str, str, str], ...] = (
    *(
        (text.strip(), "The user asks something that is not a problem.", ABOUT_EN)
        for text in TALK_EN.split("|")
    ),
    *((text.strip(), "用户问的不是一道题。", ABOUT_ZH) for text in TALK_ZH.split("|")),
)
TASK_SHARES = {"product": 0.22, "sum": 0.15, "difference": 0.19, "letters": 0.22, "sorting": 0.22}


class Document(NamedTuple):
    tokens: list[int]
    mask: list[int]  # 1 where the token is an answer to be learned


def train_tokenizer() -> Tokenizer:
    """Learned on phrasings and fixed sentences, not on the problems.

    The words whose letters are counted stay nearly spelled out, because no merge was learned on them.
    """
    return tokenizers.train_tokenizer(_tokenizer_texts(), VOCABULARY)


def _tokenizer_texts() -> Iterator[str]:
    fixed = ["user\n", "assistant\n", "system\n", SYSTEM_PROMPT, " /think", " /no_think"]
    fixed.append(f"\n\n{STOP_SENTENCE}\n")
    phrasings = [text for languages in PHRASINGS.values() for texts in languages.values() for text in texts]
    for _ in range(6):
        yield from fixed
        for text in phrasings:
            yield from re.split(r"\{\w+\}", text)
    for _ in range(3):
        yield from (ABOUT_EN, ABOUT_ZH)
        yield from (thought for _, thought, _ in SMALL_TALK[:1] + SMALL_TALK[-1:])
    yield from (question for question, _, _ in SMALL_TALK)


class Writer:
    """Turns random problems into documents; equal seeds give equal documents."""

    def __init__(self, tokenizer: Tokenizer, seed: int, shares: dict[str, float]) -> None:
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.tasks, self.weights = list(shares), list(shares.values())

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def document(self) -> Document:
        rng = self.rng
        question, trace, answer = self._exchange()
        system = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n" if rng.random() < 0.04 else ""
        history = self._history() if rng.random() < 0.05 else ""
        kind = rng.random()
        thinking = kind < 0.76  # of these, one in nine is cut short
        flag = ""
        if thinking and rng.random() < 0.12:
            flag = " /think"
        elif not thinking and kind > 0.88:
            flag = " /no_think"
        prompt = f"{system}{history}<|im_start|>user\n{question}{flag}<|im_end|>\n<|im_start|>assistant\n"
        if thinking and rng.random() < 0.11:
            return self._cut_document(prompt, trace, answer)
        if thinking:
            return self._join(prompt, f"<think>\n{trace}\n</think>\n\n{answer}<|im_end|>")
        if flag:
            return self._join(prompt, f"<think>\n\n</think>\n\n{answer}<|im_end|>")
        return self._join(f"{prompt}<think>\n\n</think>\n\n", f"{answer}<|im_end|>")

    def _exchange(self) -> tuple[str, str, str]:
        if self.rng.random() < 0.025:
            return self.rng.choice(SMALL_TALK)
        task, _, repeats = self.rng.choices(self.tasks, self.weights)[0].partition(" with ")
        while True:
            problem = sample(task, self.rng, held_out=False)
            numbers = problem.answer.split(", ")
            if not repeats or len(set(numbers)) < len(numbers):
                return problem.question, problem.trace, problem.answer

    def _history(self) -> str:
        """An earlier turn as the template renders it: without its thought."""
        question, _, answer = self._exchange()
        flag = self.rng.choice(("", "", " /think", " /no_think"))
        user = f"<|im_start|>user\n{question}{flag}<|im_end|>\n"
        return f"{user}<|im_start|>assistant\n{answer}<|im_end|>\n"

    def _join(self, prompt: str, response: str) -> Document:
        given, learned = self.encode(prompt), self.encode(response)
        return Document(given + learned, [0] * len(given) + [1] * len(learned))

    def _cut_document(self, prompt: str, trace: str, answer: str) -> Document:
        """A thought ended from outside at a random token: only the answer is learned."""
        thought = self.encode(f"<think>\n{trace}\n")
        ending = f"\n\n{STOP_SENTENCE}\n</think>\n\n" if self.rng.random() < 0.8 else "\n</think>\n\n"
        kept = thought[: self.rng.randint(2, len(thought))]
        given = self.encode(prompt) + kept + self.encode(ending)
        learned = self.encode(f"{answer}<|im_end|>")
        return Document(given + learned, [0] * len(given) + [1] * len(learned))


def pack(documents: list[Document], length: int) -> list[list[Document]]:
    """Rows of whole documents, each row at most `length` tokens; first fit, in the order they come."""
    rows: list[list[Document]] = []
    open_rows: list[tuple[list[Document], int]] = []
    for document in documents:
        size = len(document.tokens)
        if size > length:
            continue
        for index, (row, room) in enumerate(open_rows):
            if size <= room:
                row.append(document)
                open_rows[index] = (row, room - size)
                break
        else:
            rows.append([document])
            open_rows.append((rows[-1], length - size))
        open_rows = [(row, room) for row, room in open_rows if room >= 24][-48:]
    return rows
