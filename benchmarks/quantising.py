"""What the rules of `deepfast quantize` cost the bundled model: `python benchmarks/quantising.py`

In: nothing; calibration and measuring texts are chats about problems of the model's own generator, from two
seeds, the second of the held-out ones. Out: for q4 by the plain rule, by search and by search
with an importance matrix: KL divergence from the original, the share of positions with the same likeliest
token, and how many of 400 held-out problems are solved. Does not know: speed.
"""

import random
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deepfast import LLM, SamplingParams, Thinking
from deepfast.backend.cpu import CpuBackend
from deepfast.backend.machine import available_cpus
from deepfast.model.compare import compare
from deepfast.model.hub import BUNDLED
from deepfast.model.importance import calibrate
from deepfast.model.least_error import Rounder
from deepfast.model.packed import write_packed
from deepfast.model.weights import Checkpoint
from deepfast.text.tokenizer import Tokenizer
from deepfast.train.documents import exchange
from deepfast.train.problems import TASKS, Problem, Split, sample, verify

ASKED = tuple(name for name in TASKS if name != "tools")
TOKENS, PROBLEMS, AT_ONCE = 16384, 400, 16


def problems(seed: int, split: Split, count: int) -> list[Problem]:
    """Of all tasks alike."""
    rng = random.Random(seed)
    return [sample(rng.choice(ASKED), rng, split) for _ in range(count)]


def chats(seed: int, split: Split) -> str:
    """As the model was taught to write them, three in four with a thought."""
    rng, lines = random.Random(seed), []
    for problem in problems(seed, split, 800):
        thought = exchange(problem, checks=False).thought if rng.random() < 0.76 else ""
        lines.append(
            f"<|im_start|>user\n{problem.question}<|im_end|>\n<|im_start|>assistant\n"
            f"<think>\n{thought}\n</think>\n\n{problem.answer}<|im_end|>\n"
        )
    return "".join(lines)


def solved(path: Path) -> int:
    """Of PROBLEMS held-out problems, greedily, with thinking."""
    greedy = SamplingParams(temperature=0, max_tokens=700)
    with LLM(path) as llm, ThreadPoolExecutor(AT_ONCE) as threads:

        def right(problem: Problem) -> bool:
            return verify(problem, llm.chat(problem.question, greedy, Thinking("on")).content)

        return sum(threads.map(right, problems(99, "test", PROBLEMS)))


def main() -> None:
    """One line for each rule."""
    backend = CpuBackend(available_cpus())
    tokenizer = Tokenizer.of(Checkpoint.open(BUNDLED).text)
    texts = [
        tokenizer.encode(chats(seed, split), control=True)[:TOKENS]
        for seed, split in ((1, "train"), (2, "test"))
    ]
    importance = calibrate(Checkpoint.open(BUNDLED), backend, texts[0])
    print(f"the original solves {solved(BUNDLED)} of {PROBLEMS}")
    for rule in ("plain", "search", "importance"):
        of = importance.of if rule == "importance" else None
        with tempfile.TemporaryDirectory() as folder, Rounder("q4", of, backend.threads) as rounder:
            out = Path(folder) / "packed"
            prepare = None if rule == "plain" else rounder
            write_packed(Checkpoint.open(BUNDLED), backend, "q4", out, prepare=prepare)
            found = compare(Checkpoint.open(BUNDLED), Checkpoint.open(out), backend, texts[1])
            right = solved(out)
            print(
                f"q4 {rule}: KL mean {found.kl_mean:.4f}, median {found.kl_median:.4f}, 99 % below "
                f"{found.kl_p99:.3f}; same likeliest token {found.same_top:.1%}; perplexity "
                f"{found.perplexity:.4g}, of the original {found.perplexity_original:.4g}; solves {right} "
                f"of {PROBLEMS}",
                flush=True,
            )


if __name__ == "__main__":
    main()
