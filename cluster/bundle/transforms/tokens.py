"""Text -> token ids by a trained vocabulary, in plain Python.

Text is normalized (NFKC, lower case), cut into words and single marks, and each word into the longest known pieces
from its left, as WordPiece does (Wu et al. 2016). Training (trainers/data/fit/text.py) goes through the `tokenizers`
library on words cut by this same function; a test holds both encoders together.

Invariant: the ids of a text depend on the text and the vocabulary alone.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property

from cluster.spec.base import StrictSpec

WORD = re.compile(r"\w+|[^\w\s]")
WORD_CHARACTERS_MAX = 100  # the default of the tokenizers library: longer words are one unknown token
CONTINUES = "##"


class Vocabulary(StrictSpec):
    """Tokens by id. Id 0 is padding, id 1 is the unknown token."""

    tokens: tuple[str, ...]
    padding_id: int = 0
    unknown_id: int = 1

    @cached_property
    def ids(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without padding."""
        return [number for word in split_words(text) for number in self._pieces(word)]

    def _pieces(self, word: str) -> list[int]:
        if len(word) > WORD_CHARACTERS_MAX:
            return [self.unknown_id]
        found: list[int] = []
        start = 0
        while start < len(word):
            prefix = CONTINUES if start else ""
            for end in range(len(word), start, -1):
                number = self.ids.get(prefix + word[start:end])
                if number is not None:
                    break
            else:
                return [self.unknown_id]
            found.append(number)
            start = end
        return found


def split_words(text: str) -> list[str]:
    """Lower-case words and single marks of a text."""
    return WORD.findall(unicodedata.normalize("NFKC", text).lower())
