"""Which texts English rules can read: by script, and in Latin script by function words. All texts are made up."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from dat_ray.config.models import JudgeConfig
from dat_ray.data.language import english_rules_read
from dat_ray.engines.factory import build_judge

REFUSALS = {
    "German": ["Es tut mir leid, dabei kann ich nicht helfen.", "Leider kann ich diese Bitte nicht erfüllen."],
    "Spanish": ["Lo siento, no puedo ayudarte con eso.", "Esto es ilegal y no voy a ayudar."],
    "French": ["Je suis désolé, je ne peux pas vous aider.", "Je ne peux pas répondre à cela."],
    "Italian": ["Mi dispiace, non posso aiutarti con questo.", "Questa richiesta è contro la legge e non la seguo."],
    "Portuguese": ["Desculpe, não posso ajudar com isso.", "Sinto muito, mas isso é ilegal e não o farei."],
    "Dutch": ["Het spijt me, daar kan ik niet bij helpen.", "Dat is verboden en ik doe het niet."],
    "Vietnamese": ["Xin lỗi, tôi không thể giúp bạn việc đó.", "Tôi không thể trả lời câu hỏi này."],
    "Indonesian": ["Maaf, saya tidak bisa membantu dengan itu.", "Saya tidak dapat menjawab pertanyaan ini."],
    "Polish": ["Przepraszam, nie mogę w tym pomóc.", "Przykro mi, ale to jest niezgodne z prawem."],
    "Turkish": ["Üzgünüm, bu konuda size yardımcı olamam.", "Bu yasalara aykırı ve bunu çok tehlikeli için yapamam."],
    "Swedish": ["Tyvärr kan jag inte hjälpa dig med det.", "Det är olagligt och jag gör det inte."],
    "Swahili": ["Samahani, siwezi kusaidia kwa hilo kwa sababu ni kinyume cha sheria na si salama."],
}
# Zulu has no list: words enough, and hardly one of them English.
UNKNOWN = "ngiyaxolisa kodwa angikwazi ukusiza ngalokho ngoba kuphambene nomthetho futhi kuyingozi kakhulu kubantu " * 2


@pytest.mark.parametrize("name", ["refusal-rules", "refusal-opening", "refusal-anywhere"])
@pytest.mark.parametrize("language", REFUSALS)
def test_a_refusal_in_another_language_is_never_an_answer(language: str, name: str) -> None:
    judge = build_judge(JudgeConfig(name=name))
    texts = REFUSALS[language]
    assert [found.verdict for found in judge.judge(texts, texts, texts)] == ["unparsed"] * len(texts)


def test_a_language_without_a_list_is_known_by_what_is_missing() -> None:
    words = UNKNOWN.split()
    assert not english_rules_read(" ".join(words[:20]))
    assert english_rules_read(" ".join(words[:5])), "too short to tell"


@pytest.mark.parametrize(
    "text",
    [
        "Sure, here is how to say it in Spanish: lo siento, no puedo.",
        "The word Schadenfreude comes from German, where Schaden is harm and Freude is joy.",
        "Order the crème brûlée, a café au lait and the pain au chocolat; all of it is on the menu.",
        "In Rio de Janeiro you should see the Cristo Redentor and the beaches of Ipanema.",
        "def main():\n    return [x for x in range(10) if x % 2]",
        "Eggs, flour, milk, sugar, butter.",
        "OK",
    ],
)
def test_english_with_foreign_words_stays_english(text: str) -> None:
    assert english_rules_read(text)


def test_no_text_that_comes_with_the_package_is_taken_for_another_language() -> None:
    texts, translations = [], []
    for file in (resources.files("dat_ray.data") / "builtin").iterdir():
        if file.name.endswith(".jsonl"):
            for line in file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                # Translations are meant to be in another language, and so known.
                if row.get("variant") in ("spanish", "french", "german", "portuguese"):
                    translations.append(row["prompt"])
                    continue
                values = [value for value in row.values() if not isinstance(value, float)]
                texts += [text for value in values for text in (value if isinstance(value, list) else [value])]
    assert len(texts) > 1500
    assert [text for text in texts if not english_rules_read(text)] == []
    # A language of Latin script is known by its function words, of which a short sentence may have few.
    assert sum(not english_rules_read(text) for text in translations) > 0.95 * len(translations) > 300


@pytest.mark.parametrize(
    ("text", "readable"),
    [
        ("Sure, here it is.", True),
        ("", True),
        ("12 + 30 = 42", True),
        ("Nat\u00fcrlich, hier ist der Brief \U0001f600", False),
        ("\uff33\uff35\uff32\uff25", True),
        ("\u041a\u043e\u043d\u0435\u0447\u043d\u043e, \u0432\u043e\u0442 \u043f\u0438\u0441\u044c\u043c\u043e", False),
        ("\u0644\u0627 \u0623\u0633\u062a\u0637\u064a\u0639", False),
        # Six Latin letters of eight, then of nine.
        ("letter \u4e00\u4e8c", True),
        ("letter \u4e00\u4e8c\u4e09", False),
    ],
)
def test_english_rules_read_what_is_latin_for_three_quarters(text: str, readable: bool) -> None:
    assert english_rules_read(text) is readable
