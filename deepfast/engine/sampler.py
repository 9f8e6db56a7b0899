"""From a sequence's parameters to the arguments that the backend samples with.

In: a Sequence. Out: SampleArgs. Randomness is an input: the uniform number of a token is a hash of
(seed, position), so a token never depends on who else is in the batch, nor on how often it was computed.
Does not know: logits.
"""

from __future__ import annotations

from ..backend.base import SampleArgs
from .sequence import Sequence

MASK = (1 << 64) - 1


def _mix(x: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64 bits with full avalanche."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that draws the token at `position`: 53 bits of a hash of both."""
    return (_mix(_mix(seed & MASK) + (position + 1) * 0x9E3779B97F4A7C15 & MASK) >> 11) * 2.0**-53


def sample_args(seq: Sequence) -> SampleArgs:
    """What the backend needs to draw the next token of `seq`."""
    p = seq.params
    assert p.temperature is not None and p.top_k is not None and p.top_p is not None
    assert p.min_p is not None and p.presence_penalty is not None
    penalised = p.presence_penalty != 0 or p.frequency_penalty != 0 or p.repetition_penalty != 1
    return SampleArgs(
        temperature=p.temperature,
        top_k=p.top_k,
        top_p=p.top_p,
        min_p=p.min_p,
        uniform=uniform(seq.seed, len(seq.tokens)),
        presence_penalty=p.presence_penalty,
        frequency_penalty=p.frequency_penalty,
        repetition_penalty=p.repetition_penalty,
        logit_bias=seq.bias(),
        banned_ids=tuple(seq.banned_ids()),
        mask=seq.mask(),
        prompt_ids=seq.tokens[: seq.num_prompt] if p.repetition_penalty != 1 else (),
        output_ids=seq.tokens[seq.num_prompt :] if penalised else (),
    )
