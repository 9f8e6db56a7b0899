"""What is put into a thought, in the user's language: the sentence that stops it, the word that prolongs it.

In: the languages that a model brings itself (thinking.json), the user's text. Out: texts to force, </think>
included.
The English stop sentence is the one of Qwen's documentation (Qwen3 quickstart, "Thinking Budget"); the other
languages are our own translations of it. "Wait" is from s1 (arXiv 2501.19393).
Does not know: tokens, when they are forced.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..types import ModelError

FILE = "thinking.json"
CLOSE = "\n</think>\n\n"
DEFAULT = "en"
# language -> (stop sentence, word that makes the thought go on)
TABLE: dict[str, tuple[str, str]] = {
    "en": (
        "Considering the limited time by the user, "
        "I have to give the solution based on the thinking directly now.",
        "Wait",
    ),
    "zh": ("考虑到用户的时间有限，我现在必须根据以上思考直接给出答案。", "等等"),
    "ja": (
        "ユーザーの時間が限られているため、ここまでの思考に基づいて、今すぐ直接答えを出さなければなりません。",
        "待って",
    ),
    "ko": (
        "사용자의 시간이 제한되어 있으므로, 지금까지의 생각을 바탕으로 지금 바로 답을 제시해야 합니다.",
        "잠깐",
    ),
    "ru": (
        "Учитывая ограниченное время пользователя, "
        "я должен сейчас же дать решение на основе этих рассуждений.",
        "Подождите",
    ),
    "ar": ("نظرًا لضيق وقت المستخدم، يجب أن أقدّم الحل الآن مباشرةً بناءً على ما فكّرت فيه.", "انتظر"),
    "es": (
        "Teniendo en cuenta el tiempo limitado del usuario, "
        "debo dar ahora la solución directamente a partir de este razonamiento.",
        "Espera",
    ),
    "fr": (
        "Compte tenu du temps limité de l'utilisateur, "
        "je dois maintenant donner directement la solution à partir de cette réflexion.",
        "Attends",
    ),
    "de": (
        "Angesichts der begrenzten Zeit des Nutzers "
        "muss ich die Lösung jetzt direkt auf Grundlage dieser Überlegungen geben.",
        "Moment",
    ),
    "pt": (
        "Considerando o tempo limitado do usuário, "
        "tenho de dar agora a solução diretamente com base neste raciocínio.",
        "Espere",
    ),
    "it": (
        "Considerando il tempo limitato dell'utente, "
        "devo dare ora la soluzione direttamente in base a questo ragionamento.",
        "Aspetta",
    ),
    "vi": (
        "Vì thời gian của người dùng có hạn, "
        "bây giờ tôi phải đưa ra lời giải trực tiếp dựa trên những suy nghĩ trên.",
        "Khoan đã",
    ),
    "th": ("เนื่องจากผู้ใช้มีเวลาจำกัด ตอนนี้ฉันต้องให้คำตอบโดยตรงจากสิ่งที่คิดไว้", "เดี๋ยวก่อน"),
    "hi": ("उपयोगकर्ता के सीमित समय को देखते हुए, मुझे अब इस सोच के आधार पर सीधे समाधान देना होगा।", "रुको"),
}

_NOISE = re.compile(r"```.*?(?:```|$)|`[^`]*`|https?://\S+|<[^>]*>", re.DOTALL)
_SAMPLE = 4000  # characters of a message that are looked at
_LATIN = re.compile(r"[a-zà-öø-ÿœăđĩũơưạ-ỹ]+")
# Where words are not set apart by spaces every letter counts as one, elsewhere a word counts as two.
_LETTERS = {"kana": r"[\u3041-\u30ff]", "zh": r"[\u3400-\u4dbf\u4e00-\u9fff]", "th": r"[\u0e01-\u0e5b]"}
_WORDS = {
    "ko": r"[\uac00-\ud7a3]+",
    "ru": r"[\u0400-\u04ff]+",
    "ar": r"[\u0620-\u06ff]+",
    "hi": r"[\u0900-\u097f]+",
}
_FOREIGN = {  # letters of other languages in the same script: Ukrainian, Serbian, Persian, Urdu
    "ru": re.compile("[іїєґўјљњђћџѓќӘәҒғҚқҢңӨөҮүҰұҺһ]"),
    "ar": re.compile("[پچژگکیٹڈڑےھۇېۆ]"),
}
_OWN = {"ru": re.compile("[ыэё]"), "hi": re.compile(r"\b(?:है|हैं|के|का|की|में|को|से|और|क्या|नहीं|यह)(?!\S)")}
_FUNCTION_WORDS = {
    "en": "the of and to in is are was what how for that with you it this be as on which do does an my",
    "es": "el la los las de del en que es un una por para con se cuál cuánto cómo qué su más son no este",
    "fr": "le la les de des du et en que est un une pour avec dans qui ce cette quel quelle combien sont je",
    "de": "der die das und in den von zu mit ist ein eine nicht was wie für auf ich es sind wird dem des",
    "pt": "os as de do da dos das em que é um uma por para com se qual quanto como não são na no este neste",
    "it": "il la lo gli le di del della dell in che è un una per con si quale quanto come non sono questo",
    "vi": "là của và có trong một được cho không những các với người này để bao nhiêu đã thì khi tôi gì",
}
_FUNCTIONS = {language: frozenset(words.split()) for language, words in _FUNCTION_WORDS.items()}


class Sentences:
    """The texts of one model. `close` ends a thought in the fewest tokens."""

    close = CLOSE

    def __init__(self, table: Mapping[str, tuple[str, str]] = TABLE) -> None:
        assert DEFAULT in table
        self._table = dict(table)

    @classmethod
    def of(cls, raw: Mapping[str, Any] | None) -> Sentences:
        """The languages of a parsed thinking.json, {"stop": {"en": ...}, "wait": {"en": ...}}, or else ours.

        Raises ModelError when it makes no sense.
        """
        return cls() if raw is None else cls(_checked(raw))

    def stop(self, language: str = DEFAULT) -> str:
        """The stop sentence with </think>; English where the model has none in this language."""
        return f"\n\n{self._of(language)[0]}{CLOSE}"

    def wait(self, language: str = DEFAULT) -> str:
        """What takes the place of a </think> that comes too early."""
        return f"\n{self._of(language)[1]}"

    def _of(self, language: str) -> tuple[str, str]:
        return self._table.get(language, self._table[DEFAULT])


def language_of(text: str) -> str:
    """The language of a message: one of TABLE when that is clear, else "en".

    By script, and in Latin script by function words. Code, addresses and tags are left out.
    """
    text = unicodedata.normalize("NFC", _NOISE.sub(" ", text[:_SAMPLE]).lower())
    latin = _LATIN.findall(text)
    counts = {name: len(re.findall(pattern, text)) for name, pattern in _LETTERS.items()}
    counts |= {name: 2 * len(re.findall(pattern, text)) for name, pattern in _WORDS.items()}
    if counts["kana"] * 10 >= counts["zh"]:  # Japanese mixes both; a name in kana makes no Chinese Japanese
        counts["ja"] = counts["kana"] and counts["kana"] + counts["zh"]
    del counts["kana"]
    best = max(counts, key=lambda name: counts[name])
    if counts[best] <= 2 * len(latin):
        return _latin_language(latin)
    foreign, own = _FOREIGN.get(best), _OWN.get(best)
    if foreign is not None and foreign.search(text):
        return DEFAULT
    long = counts[best] > 40  # a text of twenty words has letters and words of its own language
    return DEFAULT if long and own is not None and not own.search(text) else best


def _latin_language(words: list[str]) -> str:
    hits = Counter({name: sum(word in known for word in words) for name, known in _FUNCTIONS.items()})
    (best, most), (_, second) = hits.most_common(2)
    clear = most >= 2 and most > second and most * 6 >= len(words)
    return best if clear else DEFAULT


def _checked(raw: Any) -> dict[str, tuple[str, str]]:
    """The table in thinking.json; English must be there, for it stands in for what is missing."""
    if not isinstance(raw, dict) or set(raw) != {"stop", "wait"}:
        raise ModelError(f'{FILE}: expected an object with the keys "stop" and "wait", and no others.')
    for kind, texts in raw.items():
        if not isinstance(texts, dict) or DEFAULT not in texts:
            raise ModelError(f'{FILE}: "{kind}" must map languages to sentences, "{DEFAULT}" among them.')
        for language, text in texts.items():
            if language not in TABLE:
                raise ModelError(f"{FILE}: {kind} has the language {language!r}; known: {', '.join(TABLE)}.")
            if not isinstance(text, str) or not text.strip() or "<" in text:
                raise ModelError(f"{FILE}: {kind}.{language} must be text, not empty and without '<'.")
    stop, wait = raw["stop"], raw["wait"]
    if missing := set(stop) ^ set(wait):
        raise ModelError(f'{FILE}: language {min(missing)!r} must be in both "stop" and "wait".')
    return {language: (stop[language].strip(), wait[language].strip()) for language in stop}
