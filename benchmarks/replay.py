"""Lets an engine write a given text: `with replay(llm) as player: player.play(ids, start)`.

In: an LLM, the ids that its next answer shall have, and how long the rendered prompt is. Out: the engine does
all its work (forward passes, drafts, drawing); only the tokens drawn are replaced by those of the text. So
random weights write sense, and drafts are accepted as often as they would be in that text. One request at a
time. Does not know: models, what is measured.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from deepfast import LLM
from deepfast.engine.runner import Runner
from deepfast.engine.scheduler import Chunk
from deepfast.engine.speculate import Row, Sampled
from deepfast.text.tokenizer import Tokenizer

ROOM = 1024  # max_tokens beyond the text: the engine must see no reason to close the thought early

WORDS = (
    "after again air all along animal answer apple around ask autumn away back bank bird black blue boat "
    "body book both bread bridge bright bring brother build busy call carry case cause chair change child "
    "church city clear close cloud cold colour come corner country cover cross dark daughter day deep "
    "different door draw dream dry early earth east edge eight enough evening every eye face fall family "
    "farm father field fire first fish five floor flower food foot forest four fresh friend garden gate "
    "gold grass great green ground grow hand happy hard head heart heavy high hill home horse hour house "
    "idea island kitchen know lake land large laugh leaf learn left letter light line little long machine "
    "market matter meet middle milk mind money month moon morning mother mountain mouth move music name "
    "narrow near new night nine noise north number ocean often old open orange other paper part people "
    "picture piece place plain plant point quiet rain reach read red rest rich river road rock roof room "
    "round salt sand school sea second seed seven shape ship short silver simple sister six sky sleep "
    "slow small snow soft song sound south spring stand star stone story street strong summer sun sweet "
    "table tall ten thing three time town travel tree true twelve under valley village voice wait walk "
    "wall warm water way west wheel white wide wind window winter wood word world write yellow young "
).split()


def random_text(tokenizer: Tokenizer, tokens: int, seed: int) -> str:
    """Sentences of random words, so many tokens long, that encode to the ids they were decoded from."""
    rng = random.Random(seed)
    sentences: list[str] = []
    for _ in range(tokens // 4 + 1):
        sentences.append(" ".join(rng.choices(WORDS, k=rng.randint(5, 12))).capitalize() + ".")
    text = tokenizer.decode(tokenizer.encode(" ".join(sentences))[:tokens])
    assert len(tokenizer.encode(text)) == tokens
    return text


class Player:
    """Stands between an engine and its runner.

    on_first: called when the first token of a text was drawn; `first` is what it returned. steps: forward
    passes since `play`.
    """

    def __init__(self, runner: Runner) -> None:
        self._forward, self._sample = runner.forward, runner.sample
        self._chunks: Sequence[Chunk] = ()
        self._text: Sequence[int] = ()
        self._start = 0
        self.on_first: Callable[[], Any] = lambda: None
        self.first: Any = None
        self.steps = 0

    def play(self, text: Sequence[int], start: int) -> None:
        """Let the next request write `text` after the first `start` tokens, its rendered prompt."""
        self._text, self._start, self.first, self.steps = text, start, None, 0

    def forward(self, chunks: Sequence[Chunk]) -> None:
        """Compute as ever."""
        self._chunks = chunks
        self.steps += 1
        self._forward(chunks)

    def sample(self, rows: Sequence[Row]) -> list[Sampled]:
        """Draw as ever, and return the text's tokens."""
        drawn = self._sample(rows)
        self.first = self.first or self.on_first()
        lengths = [len(self._chunks[row.chunk].seq.tokens) for row in rows]
        return [Sampled(self._text[n - self._start], d.logprob) for n, d in zip(lengths, drawn, strict=True)]


@contextmanager
def replay(llm: LLM) -> Iterator[Player]:
    """A Player in front of the engine's runner."""
    runner = llm.engine.runner
    player = Player(runner)
    runner.forward, runner.sample = player.forward, player.sample  # type: ignore[method-assign]
    try:
        yield player
    finally:
        del runner.forward, runner.sample
