"""Training documents are what serving renders, and only answers are learned.

In: deepfast.train's documents, small talk, wording, tokenizer and stages, with the bundled tokenizer. It
needs no PyTorch.
"""

import itertools
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_fixtures import END_ID, PAD_ID

from deepfast.text.template import ChatTemplate
from deepfast.text.tokenizer import Tokenizer
from deepfast.thinking.sentences import TABLE, language_of
from deepfast.train.documents import (
    FLAG,
    STOP_SENTENCE,
    Document,
    Mixture,
    Writer,
    as_messages,
    exchange,
)
from deepfast.train.problems import TASKS, sample, verify
from deepfast.train.problems.tools import calls_in
from deepfast.train.publish import _move
from deepfast.train.rewards import END
from deepfast.train.stage import Stage
from deepfast.train.talk import GREETINGS, REPLY, small_talk
from deepfast.train.tokenizer import FEWEST, copy_text_files, train_tokenizer, write_tokenizer
from deepfast.train.wording import wording
from deepfast.types import Message, UsageError

BUNDLED = Path(__file__).resolve().parents[1] / "deepfast" / "bundled"
KINDS = ("plain", "direct", "think", "no_think", "cut", "tools", "turns", "talk")
EMPTY = "<think>\n\n</think>\n\n"


def writer(*kinds: str, seed: int = 1, checks: bool = False) -> Writer:
    return Writer(BUNDLED, Mixture(dict.fromkeys(kinds, 1.0), checks=checks), seed, parameters=3_000_000)


def documents(count: int, *kinds: str, seed: int = 1) -> list[Document]:
    return list(itertools.islice(writer(*kinds, seed=seed).documents(), count))


def texts(document: Document) -> tuple[str, str]:
    """What is read, what is learned."""
    tokenizer = Tokenizer.from_dir(BUNDLED)
    split = document.mask.index(1)
    assert set(document.mask[split:]) == {1} and len(document.mask) == len(document.tokens)
    return tokenizer.decode(document.tokens[:split]), tokenizer.decode(document.tokens[split:])


def answers(document: Document) -> list[tuple[str, str]]:
    """Of each answer that is learned: all that stands before it, and the answer."""
    decode, found, start = Tokenizer.from_dir(BUNDLED).decode, [], 0
    for learned, run in itertools.groupby(document.mask):
        end = start + len(list(run))
        if learned:
            found.append((decode(document.tokens[:start]), decode(document.tokens[start:end])))
        start = end
    return found


def asked(prompt: str) -> list[Message]:
    """The turns of a prompt in the chat format."""
    turns = [turn.partition("\n") for turn in prompt.split("<|im_start|>")[1:-1]]
    return [Message(role, content.removesuffix("<|im_end|>\n")) for role, _, content in turns]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_equal_documents(kind: str) -> None:
    assert documents(12, kind) == documents(12, kind)
    assert documents(12, kind) != documents(12, kind, seed=2)


@pytest.mark.parametrize("kind", ["think", "no_think", "turns", "talk"])
def test_conversations_are_what_the_template_renders(kind: str) -> None:
    template = ChatTemplate.from_dir(BUNDLED, Tokenizer.from_dir(BUNDLED))
    for document in documents(60, kind):
        prompt, answer = texts(document)
        assert answer.endswith(END) and answer.count(END) == 1
        closed = prompt.endswith(EMPTY)
        assert template.render(asked(prompt), enable_thinking=not closed) == prompt
        thought, ended, reply = answer.removesuffix(END).partition("</think>\n\n")
        if ended:  # the template renders an answer with its thought as it was learned
            message = Message("assistant", reply, thought.removeprefix("<think>\n").strip("\n"))
            whole = template.encode([*asked(prompt), message], add_generation_prompt=False)
            assert whole[: len(document.tokens)] == document.tokens
        else:
            assert closed


def test_the_last_flag_is_followed() -> None:
    flagged = 0
    for document in documents(300, "turns", "think", "no_think"):
        prompt, answer = texts(document)
        said = " ".join(turn.content or "" for turn in asked(prompt) if turn.role in ("system", "user"))
        last = max((said.rfind(flag), flag) for flag in FLAG.values())
        if prompt.endswith(EMPTY):
            assert "</think>" not in answer
        elif last[0] >= 0:
            flagged += 1
            assert answer.startswith(EMPTY) == (last[1] == FLAG[False])
        else:
            assert answer.startswith("<think>\n") and not answer.startswith(EMPTY)
    assert flagged > 50


def test_nothing_of_a_thought_cut_short_is_learned() -> None:
    endings = {True: 0, False: 0}
    for document in documents(80, "cut"):
        prompt, answer = texts(document)
        assert "think>" not in answer and answer.endswith(END)
        assert prompt.endswith("\n</think>\n\n") and prompt.count("<think>") == 1
        endings[STOP_SENTENCE in prompt] += 1
    assert endings[True] > endings[False] > 0


def test_plain_text_knows_no_chat() -> None:
    for document in documents(40, "plain", "direct"):
        prompt, answer = texts(document)
        assert prompt.endswith("\n") and answer.endswith("<|endoftext|>") and "<|im_" not in prompt + answer


def test_tools_are_called_and_their_results_used() -> None:
    calls = replies = thoughts = 0
    for document in documents(120, "tools"):
        for prompt, answer in answers(document):
            assert "<tools>" in prompt and answer.endswith(END) and answer.count(END) == 1
            assert prompt.endswith(("<|im_start|>assistant\n", EMPTY))
            thoughts += answer.startswith("<think>\n") and not answer.startswith(EMPTY)
            if "<tool_call>" in answer:
                made = calls_in(answer.removesuffix(END))
                assert made and made[0][0] in prompt
                calls += 1
            else:
                assert "<tool_response>" in prompt
                replies += 1
    assert calls > 60 and replies > 60 and 60 < thoughts < calls + replies - 60


def test_a_thought_is_cut_in_the_language_of_its_question(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):  # brings no sentences
        (tmp_path / name).write_bytes((BUNDLED / name).read_bytes())
    found = Writer(tmp_path, Mixture({"cut": 1.0}, {"story": 1.0}), 1).documents()
    for document in itertools.islice(found, 40):
        prompt, _ = texts(document)
        if sentence := next((TABLE[name][0] for name in ("en", "zh") if TABLE[name][0] in prompt), ""):
            assert sentence == TABLE[language_of(asked(prompt)[-1].content or "")][0]
    assert any(TABLE["zh"][0] in texts(document)[0] for document in itertools.islice(found, 20))


@pytest.mark.parametrize("name", [name for name in TASKS if name != "tools"])
def test_thoughts_lose_their_check_and_nothing_else(name: str) -> None:
    rng = random.Random(4)
    for _ in range(10):
        problem = sample(name, rng)
        short, whole = exchange(problem, checks=False), exchange(problem)
        assert whole.thought == problem.trace and whole.thought.startswith(short.thought)
        assert "Check:" not in short.thought and short.thought
        assert verify(problem, f"<think>\n{short.thought}\n</think>\n\n{short.reply}")


def test_own_thoughts_take_the_place_of_the_solvers() -> None:
    own = exchange(sample("sum", random.Random(0)))
    for share, least, most in ((1.0, 40, 40), (0.5, 10, 30), (0.0, 0, 1)):
        mine = Writer(BUNDLED, Mixture({"think": 1.0}, own=share), 1, samples=[own])
        learned = [texts(document)[1] for document in itertools.islice(mine.documents(), 40)]
        assert least <= sum(f"<think>\n{own.thought}\n</think>" in text for text in learned) <= most


def test_small_talk_is_split_and_names_the_size() -> None:
    rng = random.Random(0)
    learned = {small_talk(rng, "train", 2_854_592).question for _ in range(1500)}
    tested = [small_talk(rng, "test", 2_854_592) for _ in range(100)]
    assert not learned & {talk.question for talk in tested}
    assert learned >= {*GREETINGS["en"], *GREETINGS["zh"]}
    assert {talk.reply for talk in tested} == {
        REPLY["en"].format(size="3M-parameter"),
        REPLY["zh"].format(size="300万"),
    }


def test_messages_of_a_problem_with_tools() -> None:
    problem = sample("tools", random.Random(1))
    messages = as_messages(problem.turns)
    assert [message.role for message in messages] == [turn["role"] for turn in problem.turns]
    assert calls_in(f"<tool_call>\n{_call(messages)}\n</tool_call>") is not None


def _call(messages: list[Message]) -> str:
    call = next(message.tool_calls[0] for message in messages if message.tool_calls)
    return f'{{"name": "{call.name}", "arguments": {call.arguments}}}'


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(train_tokenizer(itertools.islice(wording(), 3000), 600), out, 2048)
    return out


@given(text=st.text(max_size=40) | st.sampled_from(["12 345", "三只鸡", "<think>\n1+1</think>", "\r\n \t é"]))
@settings(max_examples=60, deadline=None)
def test_every_text_comes_back(small: Path, text: str) -> None:
    import unicodedata

    tokenizer = Tokenizer.from_dir(small)
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


def test_the_small_tokenizer_is_qwens_in_manner(small: Path) -> None:
    tokenizer = Tokenizer.from_dir(small)
    assert tokenizer.num_ids == 600 and len(tokenizer.control_ids) == 26
    assert len(tokenizer.encode("1234567890")) == 10
    assert len(tokenizer.encode(STOP_SENTENCE)) < len(STOP_SENTENCE) / 2
    assert len(tokenizer.encode("<think>\n\n</think>\n\n", control=True)) == 4


def test_a_vocabulary_too_small_for_the_bytes_is_refused() -> None:
    with pytest.raises(UsageError, match=f"{FEWEST}"):
        train_tokenizer(["a"], FEWEST - 1)


def test_a_stage_names_what_it_needs(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "cold_start")
    with pytest.raises(UsageError, match=r"python recipes/pretrain\.py --work"):
        stage.require("pretrain")
    earlier = Stage(tmp_path, "pretrain")
    copy_text_files(BUNDLED, tmp_path)
    earlier.directory.mkdir()
    assert not earlier.done
    (earlier.directory / "model.safetensors").touch()
    assert stage.require("pretrain") == earlier.directory
    for number in (5, 20, 100):
        (earlier.run / f"checkpoint-{number}").mkdir(parents=True)
        (earlier.run / f"checkpoint-{number}" / "trainer_state.json").touch()
    (earlier.run / "checkpoint-300").mkdir()  # half written
    assert [path.name for path in earlier.states()] == ["checkpoint-5", "checkpoint-20", "checkpoint-100"]


def test_what_a_base_model_became_stops_at_the_end_of_a_turn(tmp_path: Path) -> None:
    base, part = tmp_path / "base", tmp_path / "part"
    base.mkdir()
    copy_text_files(BUNDLED, base)
    files = [base / "generation_config.json", base / "tokenizer_config.json"]
    changes = [{"eos_token_id": PAD_ID}, {"eos_token": "<|endoftext|>"}]
    for file, change in zip(files, changes, strict=True):
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    start = base
    for stage in (Stage(tmp_path, "cold_start"), Stage(tmp_path, "reasoning")):
        part.mkdir()
        stage.directory.mkdir()
        (part / "config.json").write_text("{}")
        (part / "model.safetensors").write_bytes(b"w")
        _move(part, start, stage)
        sampling, text = (json.loads((stage.directory / file.name).read_text()) for file in files)
        assert sampling["eos_token_id"] == [END_ID, PAD_ID] and text["eos_token"] == END
        assert stage.done and not part.exists()
        start = stage.directory


def test_a_vocabulary_without_thoughts_is_refused(tmp_path: Path) -> None:
    copy_text_files(BUNDLED, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tmp_path / name).read_text(encoding="utf-8").replace('"<think>"', '"<muse>"')
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="vocabulary has no <think>"):
        Writer(tmp_path, Mixture({"think": 1.0}), 1)
