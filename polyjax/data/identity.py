"""When two texts are one: the rule that training, candidates, evaluation, indexes and leakage checks share.

Two texts are one when they are equal after

1. removal of zero-width and other default-ignorable characters,
2. canonical normalisation and full case folding (canonical caseless matching, Unicode's D145), and
3. collapsing white space, that at both ends included.

Nothing else is dropped: accents, vowel signs, symbols, emoji and punctuation tell texts apart.
"""

import re
import unicodedata
import zlib

IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Default_Ignorable_Code_Point of Unicode's DerivedCoreProperties.txt, the same in versions 14 to 17."""


def text_key(text: str) -> str:
    """What two texts have in common if and only if they are one.

    The key of a key is that key. Its value may change with the Unicode version of Python, for characters
    that were not assigned before.

    >>> text_key("  Yes\\u200b  PLEASE ") == text_key("yes please")
    True
    >>> [text_key(text) for text in ("C++", "C#", "Straße", "e\\u0301")]
    ['c++', 'c#', 'strasse', 'é']
    """
    if text.isascii():
        return " ".join(text.lower().split())
    # Removal first: a character that is ignored may keep the marks around it from their canonical order.
    # Decomposition before folding, so that U+0345 is in that order before it is folded to a letter.
    folded = unicodedata.normalize("NFD", IGNORABLE.sub("", text)).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def text_hash(text: str) -> int:
    """An int32 of the text's key, for arrays; two texts that are not one rarely share it.

    >>> text_hash("Yes  please") == text_hash("yes please")
    True
    """
    return zlib.crc32(text_key(text).encode("utf-8", "surrogatepass")) - 2**31
