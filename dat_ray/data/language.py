"""Whether rules that were written for English can read a text: by its script, and in Latin script by its function words.

A refusal in another language holds none of the English phrases and would pass for an answer. Function words (articles, pronouns,
prepositions, forms of to be) make up a third to a half of running English, and hardly any stands in another language's text, so
that counting them tells English apart without a model. No attempt is made to say which language a text is in.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache

# Share of a text's letters that must be Latin for rules that were written for English to read it.
READABLE_SHARE = 0.75
# Words at the beginning that decide: a refusal shows itself early, and a quotation later on changes nothing.
OPENING = 60
# Distinct function words of one other language that a text must hold, and more than English ones, to be in that language.
FOREIGN_WORDS = 2
# A language without a list here is known by what is missing: so many words of which so small a share is English.
LONG_TEXT, ENGLISH_SHARE = 20, 0.05

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_ENGLISH_TEXT = """
    a about after again all also am an and any are as at be because been before being both but by can can't cannot could did
    do does doesn't don't each for from had has have he her here here's him his how i i'd i'll i'm i've if in instead into
    is isn't it it's its just let let's make may me more most must my need no not of on one only or other our out over
    please provide she should so some such sure than that that's the their them then there there's these they this those
    through to too under up use used using very was we were what what's when where which while who why will with without
    won't would yes you you'll you're your
"""
_ENGLISH = frozenset(_ENGLISH_TEXT.split())
# Words of a language that are frequent in it, refusals included, and that English does not use. Short words that several
# languages share count for each of them.
_OTHERS = {
    "Czech": "ale aby bych být jako jak jsem jsou které který mohu může nebo nemohu pro se tak tím to že vám omlouvám bohužel",
    "Danish, Norwegian, Swedish": """af att av beklager beklagar den det dette detta du eller en er et ett för från hjälpa hjælpe
    hjelpe ikke inte jag jeg kan med men mig og och om på som tyvärr til till vara være är""",
    "Dutch": """aan als dat de deze een geen het hier hoe ik kan kunnen maar met mij niet om onze ook op spijt te u uit van voor
    wat wij zijn zo""",
    "Filipino": """ako ang ay hindi iyon ito ka ko kong kung mga maaari na nang ng ngunit paumanhin sa upang para pasensya po
    makakatulong""",
    "Finnish": "auttaa ei en että ja jos kanssa kuin mutta minä niin ole on olen pahoillani sinä tämä valitettavasti voi voin",
    "French": """au aux avec ce ces cette dans de des désolé désolée du elle est et il ils je l'aide la le les leur mais mon ne
    nous par pas peut peux plus pour puis qu'il que qui sans sont suis sur un une votre vos vous être c'est j'ai d'un d'une""",
    "German": """aber als am auf aus bei bin bitte bitten dabei das dass dem den der dich dir diese dieser du ein eine einen einer
    es für haben helfen hier ich ihnen ist kann kein keine leid leider mich mir mit nicht oder sie sind und von werden wie wir
    zu zum zur über""",
    "Hungarian": "az egy ez és hogy kell meg mert mint nagyon nem ne segíteni sajnálom sajnos tudok vagy vagyok van volt",
    "Indonesian, Malay": """adalah anda atau bagaimana bahwa bisa boleh dalam dan dapat dari dengan di itu ini karena ke kepada
    kami kita maaf membantu mereka pada saya seperti tentang tidak untuk yang""",
    "Italian": """aiutarti al alla anche che chi ci con cosa da dei del della di dispiace e gli ho il la le lo ma mi nel nella
    non per perché più posso questa questo sono su ti un una è""",
    "Polish": """ale aby być czy dla do i jak jest je lub mi mogę może na nie od oraz pani po przepraszam przykro przez się są
    ta to w z za że żeby""",
    "Portuguese": """ajudar ao as com como da das de desculpe do dos e ela ele em esse essa eu foi isso isto lamento mas meu na
    nas não no nos o os ou para pela pelo por posso que se sem seu sua são também um uma você é""",
    "Romanian": "ajut acest care ce cu de din dar este în îmi la mai mea mi nu nu-mi o pe pentru pot rău sau se sunt și un vă",
    "Spanish": """al ayudar ayudarte como con de del disculpa el ella en eres es esa ese eso esta este esto ha hay la las le
    lo los lamento me mi muy más ni o para pero por porque puedo que se siento sin sobre son soy su sus también tu un una
    usted y ya yo""",
    "Swahili": "hapana haya hii hili huo kama kuhusu kwa kwamba kuwa la lakini na ni ninaweza samahani si siwezi wa ya yako za",
    "Turkish": """ama bana ben bir bu çok da daha de değil edemem gibi için ile ise konuda mi mı nasıl ne olarak olamam
    özür sana siz size üzgünüm ve veya yardımcı yapamam""",
    "Vietnamese": """bạn bị các cách cho có của cũng giúp hoặc không là lỗi một này nhưng những tôi thể trong và về với xin đã để
    được đó""",
}
# In both: they say nothing of either.
_SHARED_TEXT = """
    am an as at be do he her him i in is it me my no not of on or so to was we were will
"""
_SHARED = frozenset(_SHARED_TEXT.split())
_FOREIGN = {name: frozenset(words.split()) - _SHARED - _ENGLISH for name, words in _OTHERS.items()}
# Changes with what the rules read, for the fingerprints of judges that rest on it.
LANGUAGE_RULE = hashlib.sha256(
    repr((READABLE_SHARE, OPENING, FOREIGN_WORDS, LONG_TEXT, ENGLISH_SHARE, sorted(_ENGLISH), sorted(_OTHERS.items()))).encode()
).hexdigest()[:16]


def english_rules_read(text: str) -> bool:
    """Whether rules that were written for English say something about a text.

    At least `READABLE_SHARE` of its letters must be Latin, and its function words must not be those of another language. A text
    without letters passes, and so does one too short to tell.
    """
    return _latin(text) and not _other_language(text)


def _latin(text: str) -> bool:
    if text.isascii():
        return True
    letters = [char for char in unicodedata.normalize("NFKC", text) if char.isalpha()]
    return sum(map(_is_latin, letters)) >= READABLE_SHARE * len(letters)


@lru_cache(maxsize=4096)
def _is_latin(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith("LATIN ")


def _other_language(text: str) -> bool:
    words = _WORD.findall(unicodedata.normalize("NFC", text).replace("’", "'").lower())[:OPENING]
    english = sum(word in _ENGLISH for word in words)
    if len(words) >= LONG_TEXT and english < ENGLISH_SHARE * len(words):
        return True
    for foreign in _FOREIGN.values():
        hits = [word for word in words if word in foreign]
        if len(set(hits)) >= FOREIGN_WORDS and len(hits) > english:
            return True
    return False
