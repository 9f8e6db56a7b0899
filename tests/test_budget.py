"""The budget fires once and in time whatever happens, thoughts go on where asked, sentences fit models."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_fixtures import qwen

from deepfast.config import ANSWER_RESERVE, MAX_WAITS
from deepfast.text.files import TextFiles
from deepfast.thinking.budget import Budget, Texts
from deepfast.thinking.sentences import CLOSE, TABLE, Sentences, language_of
from deepfast.types import ContextError, ControlError, ModelError, UsageError

SHUT = 91
CLOSING, WAIT = (198, SHUT, 271), (198, 14190)


def texts(num_stop=24):
    """A stop sentence of so many ids."""
    return Texts((*range(1000, 999 + num_stop), SHUT), CLOSING, WAIT)


def make(budget=None, max_new=500, reserve=None, num_stop=24, **more):
    """A budget with texts of a usual length."""
    return Budget(budget, max_new, reserve, texts(num_stop), **more)


@given(
    budget=st.none() | st.integers(0, 80),
    max_new=st.integers(5, 300),
    reserve=st.none() | st.integers(0, 60),
    opened=st.booleans(),
    num_stop=st.integers(4, 40),
)
def test_the_answer_keeps_its_reserve(budget, max_new, reserve, opened, num_stop):
    """A thought that never ends: forced once, in time, within the budget, with the reserve left."""
    if reserve is not None and max(reserve, 1) + 4 > max_new:
        assert not Budget.fits(max_new, reserve, texts(num_stop))
        with pytest.raises(ContextError, match=f"{max_new} new tokens"):
            make(budget, max_new, reserve, num_stop)
        return
    assert Budget.fits(max_new, reserve, texts(num_stop))
    watch = make(budget, max_new, reserve, num_stop)
    thought, generated = 0, 0 if opened else 1
    while not (forced := watch.observe(thought, generated)):
        thought, generated = thought + 1, generated + 1
        assert generated < max_new
    stop_ids = watch.texts.stop_ids
    assert forced in (stop_ids, CLOSING)
    assert budget is None or thought <= budget
    left = max_new - generated - len(forced)
    assert left >= watch.reserve >= (1 if reserve is None else reserve)
    assert budget is None or thought < budget or forced == stop_ids or left < watch.reserve + num_stop
    assert watch.observe(thought + len(forced), generated + len(forced)) == ()


moves = st.one_of(
    st.tuples(st.sampled_from(["token", "control", "wait", "end"]), st.just(0)),
    st.tuples(st.just("hint"), st.integers(1, 30)),
    st.tuples(st.just("change"), st.none() | st.integers(0, 150)),
    st.tuples(st.just("extend"), st.integers(1, 100)),
)


@given(
    limits=st.tuples(st.none() | st.integers(0, 80), st.integers(5, 300), st.none() | st.integers(0, 60)),
    goals=st.tuples(st.integers(0, 60), st.integers(0, 60), st.booleans()),
    script=st.lists(moves, max_size=60),
)
def test_nothing_that_happens_to_a_thought_costs_the_answer_its_reserve(limits, goals, script):
    """Tokens, control tokens, waits, hints and live changes in any order, then tokens until it ends."""
    budget, max_new, reserve = limits
    least, landing, opened = goals
    try:
        watch = make(budget, max_new, reserve, min_tokens=least, soft_landing=landing)
    except ContextError:
        return
    thought, generated, raised = 0, 0 if opened else 1, False
    forced = watch.observe(thought, generated)
    script = [*script, *[("token", 0)] * max_new]
    while not forced:
        move, size = script.pop(0)
        room = watch.room(thought, generated)
        assert room > 0
        added = 1
        if move == "wait":
            added = len(watch.wait(thought, generated)) or 1
            assert added <= max(room - 1, 1)
        elif move == "hint":
            added = min(size, room)
        elif move == "change":
            watch.change(size)
            added, raised = 0, raised or size is None or thought < size
            assert watch.budget == size
        elif move == "extend":
            added = 0
            if size <= max_new - watch.reserve - 24 - generated:
                watch.extend(thought, size)
                raised = True
                assert watch.room(thought, generated) >= size
        elif move == "end":
            forced = watch.end(generated)
            break
        thought, generated = thought + (added if move != "control" else 0), generated + added
        assert watch.close_bias(thought, generated) >= 0
        forced = watch.observe(thought, generated)
    assert generated + len(forced) + watch.reserve <= max_new
    assert raised or budget is None or thought <= max(budget, 0)
    after = thought + len(forced), generated + len(forced)
    assert watch.observe(*after) == watch.end(after[1]) == watch.wait(*after) == ()
    assert watch.close_bias(*after) == watch.room(*after) == 0


def test_a_small_allowance_is_not_spent_on_the_sentence():
    """With 32 tokens the bare delimiter leaves room for a thought; the sentence would have left none."""
    watch = make(None, 32, 8)
    assert not any(watch.observe(n, n) for n in range(21))
    assert watch.observe(21, 21) == CLOSING


def test_the_default_reserve():
    """ANSWER_RESERVE, at most a quarter, at least one token."""
    of = {max_new: make(None, max_new).reserve for max_new in (5, 40, 10**6)}
    assert of == {5: 1, 40: 10, 10**6: ANSWER_RESERVE}


def test_a_budget_of_zero_closes_at_once():
    """Before the first token of the thought."""
    assert make(0).observe(0, 0) == texts().stop_ids


@pytest.mark.parametrize(("max_new", "reserve"), [(4, None), (1, None), (100, 97)])
def test_what_can_not_be_closed_and_answered_is_refused(max_new, reserve):
    """The error holds the numbers."""
    assert not Budget.fits(max_new, reserve, texts())
    with pytest.raises(ContextError, match=f"{max_new} new tokens can not hold a thought"):
        make(None, max_new, reserve)


def test_a_least_thought_that_can_not_fit_is_refused():
    """The most that is said to fit does."""
    with pytest.raises(ContextError, match="min_tokens=400 does not fit: of 500 new tokens at most 350"):
        make(None, 500, min_tokens=400)
    with pytest.raises(ContextError, match="at most 350"):
        make(None, 500, min_tokens=351)
    make(None, 500, min_tokens=350)


def test_ending_by_wish_takes_the_sentence_where_it_fits():
    """Else the bare delimiter; and whoever comes second forces nothing."""
    watch = make(None, 500, 100)
    assert watch.end(376) == texts().stop_ids
    assert watch.end(377) == watch.observe(400, 400) == watch.wait(1, 1) == ()
    assert make(None, 500, 100).end(377) == CLOSING
    left = make(None, 500, 100)
    assert left.close(10) == CLOSING
    assert left.close(13) == left.observe(400, 400) == ()


def test_a_thought_that_ends_too_early_goes_on_a_limited_number_of_times():
    """Until min_tokens, MAX_WAITS times, never without room for the word and a token after it."""
    watch = make(None, 500, min_tokens=50)
    assert watch.wait(49, 50) == WAIT
    assert watch.wait(50, 51) == ()
    assert [watch.wait(5, 6) for _ in range(MAX_WAITS)] == [WAIT] * (MAX_WAITS - 1) + [()]
    assert watch.waits == MAX_WAITS
    tight = make(53, 500, min_tokens=53)
    assert tight.wait(50, 51) == WAIT
    assert tight.wait(51, 52) == ()
    assert make(None, 500).wait(0, 1) == ()


def test_the_soft_landing_grows_by_two_nats_per_token():
    """Before the nearer of budget and deadline, and never below min_tokens or after the end."""
    watch = make(100, 500, soft_landing=10)
    assert [watch.close_bias(n, n) for n in (0, 89, 90, 91, 95, 99)] == [0, 0, 0, 2, 10, 18]
    deadline = make(None, 500, 100, soft_landing=10)  # the sentence begins at 376
    assert [deadline.close_bias(n, n) for n in (366, 367, 375)] == [0, 2, 18]
    assert make(100, 500, soft_landing=10, min_tokens=96).close_bias(95, 95) == 0
    assert make(100, 500).close_bias(99, 99) == 0
    watch.end(99)
    assert watch.close_bias(99, 99) == 0


def test_the_budget_can_be_changed_while_the_thought_runs():
    """Below what is used it ends at once; min_tokens never stays above it."""
    watch = make(None, 500, min_tokens=80)
    assert watch.observe(40, 41) == ()
    watch.change(30)
    assert (watch.min_tokens, watch.room(40, 41)) == (30, 0)
    assert watch.observe(40, 41) == texts().stop_ids
    other = make(41, 500)
    other.change(None)
    assert other.observe(41, 42) == ()
    with pytest.raises(UsageError, match="budget=-1 is no limit"):
        other.change(-1)


def test_a_thought_can_be_extended_while_it_runs():
    """min_tokens and a smaller budget rise, waits are allowed anew and still counted."""
    watch = make(100, 500, 100, min_tokens=90)
    assert [watch.wait(20, 21) for _ in range(MAX_WAITS + 1)] == [WAIT] * MAX_WAITS + [()]
    assert watch.observe(95, 96) == ()
    watch.extend(95, 50)
    assert (watch.min_tokens, watch.budget) == (145, 145)
    assert watch.wait(96, 97) == WAIT
    assert watch.waits == MAX_WAITS + 1
    watch.extend(96, 10)
    assert (watch.min_tokens, watch.budget) == (106, 145)
    assert watch.observe(97, 98) == ()
    with pytest.raises(ControlError, match="can not go on for 279 tokens: 278 are left of 500 when 100 stay"):
        watch.extend(97, 279)
    watch.extend(97, 278)
    with pytest.raises(UsageError, match="by 0 tokens"):
        watch.extend(97, 0)
    watch.end(98)
    with pytest.raises(ControlError, match="ended already"):
        watch.extend(97, 1)


# --- the sentences ---


def test_the_english_sentence_in_tokens():
    """As many tokens as the documentation of Qwen3 says, and the closing id is in it."""
    shut = qwen().control_id("</think>")
    assert len(qwen().encode(Sentences().stop("en"), control=True)) == 24
    assert qwen().encode(CLOSE, control=True) == [198, shut, 271]
    assert qwen().encode(Sentences().stop("en"), control=True)[-2:] == [shut, 271]


@pytest.mark.parametrize("language", TABLE)
def test_every_language_closes_the_thought_once(language):
    """The last control token of the text is the only one; a wait has none; the language is its own."""
    shut = qwen().control_id("</think>")
    for text, expected in ((Sentences().stop(language), [shut]), (Sentences().wait(language), [])):
        assert text.startswith("\n")
        found = qwen().encode(text, control=True)
        assert [token for token in found if token in qwen().control_ids] == expected
    assert Sentences().stop(language).endswith(CLOSE)
    assert language_of(TABLE[language][0]) == language


def test_an_unknown_language_gets_english():
    """So does a model that has only English."""
    assert Sentences().stop("tlh") == Sentences().stop("en")
    assert Sentences({"en": ("Stop.", "Wait")}).stop("zh") == "\n\nStop.\n</think>\n\n"
    assert Sentences.close == CLOSE


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is 47 * 86?", "en"),
        ("¿Cuál es la capital de Francia?", "es"),
        ("Was ist die Hauptstadt von Frankreich?", "de"),
        ("Quelle est la capitale de la France ?", "fr"),
        ("Qual é a capital da França?", "pt"),
        ("Qual è la capitale della Francia?", "it"),
        ("Thủ đô của Pháp là gì?", "vi"),
        ("Thu\u0309 đo\u0302 cu\u0309a Pha\u0301p la\u0300 gi\u0300?", "vi"),
        ("请用 Python 写一个 quicksort 函数", "zh"),
        ("东京的面积是多少？", "zh"),
        ("東京の人口は?", "ja"),
        ("프랑스의 수도는 어디입니까?", "ko"),
        ("Какая столица Франции?", "ru"),
        ("ما هي عاصمة فرنسا؟", "ar"),
        ("เมืองหลวงของฝรั่งเศสคืออะไร", "th"),
        ("फ़्रांस की राजधानी क्या है?", "hi"),
        ("", "en"),
        ("2+2?", "en"),
        ("hola", "en"),  # one word is not clear
        ("Translate to English: 你好世界", "en"),
        ("What does this print? ```python\nprint('привет, мир, как дела')\n```", "en"),
        ("Яка столиця Франції?", "en"),  # Ukrainian: not in the table
        ("پایتخت فرانسه چیست؟", "en"),  # Persian
        ("Wat is de hoofdstad van Frankrijk?", "en"),  # Dutch
        ("123 " * 5000, "en"),
    ],
)
def test_the_language_of_a_message(text, language):
    """English unless it is clearly another one."""
    assert language_of(text) == language


@given(st.text())
def test_any_text_has_a_language_of_the_table(text):
    """And none is an error."""
    assert language_of(text) in TABLE


def test_a_model_may_bring_its_own_sentences(tmp_path):
    """What its file does not list is English, not our table."""
    assert Sentences.of(TextFiles.from_dir(tmp_path).thinking).stop("zh") == Sentences().stop("zh")
    own = {"stop": {"en": "Enough.", "de": "Genug."}, "wait": {"en": "Hold on", "de": "Halt"}}
    (tmp_path / "thinking.json").write_text(json.dumps(own), encoding="utf-8")
    sentences = Sentences.of(TextFiles.from_dir(tmp_path).thinking)
    assert sentences.stop("de") == "\n\nGenug.\n</think>\n\n"
    assert sentences.stop("zh") == sentences.stop() == "\n\nEnough.\n</think>\n\n"
    assert sentences.wait("zh") == "\nHold on"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "can not be read"),
        ("[" * 100_000, "can not be read"),
        ("null", "expected a JSON object"),
        ('{"stop": {"en": "a"}}', "expected an object"),
        ('{"stop": {"en": "a"}, "wait": {"en": "b"}, "more": {}}', "no others"),
        ('{"stop": {"de": "a"}, "wait": {"en": "b"}}', '"stop" must map'),
        ('{"stop": "a", "wait": {"en": "b"}}', '"stop" must map'),
        ('{"stop": {"en": "a"}, "wait": {"en": " "}}', "wait.en must be text"),
        ('{"stop": {"en": "a</think>"}, "wait": {"en": "b"}}', "stop.en must be text"),
        ('{"stop": {"en": "a", "xx": "b"}, "wait": {"en": "b"}}', "language 'xx'"),
        ('{"stop": {"en": "a", "de": "b"}, "wait": {"en": "b"}}', "'de' must be in both"),
    ],
)
def test_a_damaged_file_of_sentences_is_a_model_error_in_one_line(tmp_path, content, words):
    """It names the file."""
    (tmp_path / "thinking.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=words) as caught:
        Sentences.of(TextFiles.from_dir(tmp_path).thinking)
    assert "thinking.json" in str(caught.value)
    assert "\n" not in str(caught.value)
