"""Names of people in text: by the words before them, and by not being words that everybody uses.

Here: the cues, and the public-vocabulary allow-list. Not here: data that has a shape (`scrub_rules`), the word lists
themselves (`vocabulary`).

Cues alone catch 3 % of names in phrasings held out (benchmark `scrubbing`). The allow-list asks the other way round: a
word in capitals that is in no public list of words, places or brands is taken for a name, and so is, in any case, a
word of the list of names. Words that are both (Grace, April, Mark) need a cue or capitals inside a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Literal

from rl.encoders.vocabulary import (
    PLACEHOLDERS,
    common_words,
    dictionary_words,
    name_words,
    personal_names,
    proper_words,
)

AllowList = Literal["none", "names", "strict"]

_INITIAL_OR_NAME = r"[A-ZÀ-ÖØ-ÞĀ-Ž](?:[^\W\d_]*(?:['’-][^\W\d_]+)*|\.)"
_PARTICLES = ("van", "von", "de", "der", "den", "del", "della", "di", "da", "do", "dos", "bin", "ibn", "al", "la", "le")
_PARTICLE = rf"(?:{'|'.join(_PARTICLES)})"
_FULL_NAME = rf"{_INITIAL_OR_NAME}(?:[ ](?:{_PARTICLE}[ ]){{0,2}}{_INITIAL_OR_NAME}){{0,3}}"

_CUED_NAME = re.compile(
    r"(?P<cue>\b(?i:my\s+(?:full\s+|first\s+|last\s+|sur|family\s+)?name\s+is|my\s+name['’]?s|name['’]s|name\s*:"
    r"|name\s+is|call(?:ed)?\s+me|speaking\s+(?:with|to)|i\s+am|i['’]?m|this\s+is|ich\s+hei(?:ß|ss)e"
    r"|mein\s+name\s+ist|je\s+m['’]appelle|me\s+llamo|(?:under|in|by)\s+the\s+name(?:\s+of)?|on\s+behalf\s+of|c/o"
    r"|attn:?|account\s+holder(?:\s+is|:)?|mr\.?|mrs\.?|ms\.?|miss|mx\.?|dr\.?|prof\.?|herr|frau|monsieur|madame"
    r"|señora?|dear|(?:best\s+|kind\s+|warm\s+)?regards,?|sincerely,?|signed,?|yours(?:\s+truly)?,?)\s+)"
    rf"(?P<name>{_FULL_NAME})"
)
_NAMING = re.compile(r"(?:my\s|name|call|mr|mrs|ms|miss|dear)", re.IGNORECASE)
_SMALL_NAME = re.compile(
    r"(?P<cue>\b(?:call(?:ed)?\s+me|speaking\s+(?:with|to)|i\s+am|i['’]?m|this\s+is|name\s*:|mr\.?|mrs\.?|ms\.?|miss"
    r"|dr\.?|dear|regards,?|sincerely,?|signed,?)\s+)(?P<name>[^\W\d_]{3,}(?:['’-][^\W\d_]{2,})*)",
    re.IGNORECASE,
)
_SMALL_PART = r"(?:[odOD]['’])?[^\W\d_]{2,}(?:['’-][^\W\d_]+)*"
_LOWER_NAME = re.compile(
    r"(?P<cue>\b(?:my\s+(?:full\s+|first\s+|last\s+)?name\s+is|my\s+name['’]?s|i\s+am\s+called|i['’]m\s+called)\s+)"
    rf"(?P<name>{_SMALL_PART}(?:[ ]{_SMALL_PART})?)",
    re.IGNORECASE,
)

_WORDS_AFTER_CUES = """
    a an and the i it so not no yes just really very also still now here there how what why who when where
    from in on at to of with for about like looking interested sure sorry glad happy sad good great fine ok okay well
    awesome amazing perfect nice cool excited curious afraid aware thinking trying going doing being asking hoping
    wondering open available ready done right wrong new old my your our their his her that this these those all only
    more most too sir madam customer team support friend but if is are was were do does did can could will would shall
    should may might must have has had please thanks thank bye goodbye hello hi hey let we you they he she them us me
    back again never always maybe because then than as by or up out off over under please wow oh yeah yep any some
    american british german french italian spanish indian chinese japanese christian
    monday tuesday wednesday thursday friday saturday sunday
    january february march april may june july august september october november december
"""
_NOT_NAMES = frozenset(_WORDS_AFTER_CUES.split())
_MONTHS = frozenset(["april", "may", "june", "august"])

# Places and brands that are given names as well; before a surname they belong to it.
_PLACES_AND_NAMES = """
    Asia Austin Brooklyn Carolina Chelsea China Dakota Dallas Florence Georgia India London Mercedes Milan Orlando
    Paris Phoenix Sydney Vienna Virginia Roman Israel Lourdes Santiago Ireland Houston Jackson Lincoln
"""
_PLACES = frozenset(_PLACES_AND_NAMES.split())

# After "Mark" or "Grace" at the start of a sentence these tell that a person is meant.
_SAID_WORDS = "told said says asked called mentioned wants wanted here speaking promised helped offered wrote"
_SAID = frozenset(_SAID_WORDS.split())

# And after "Mark," these tell that he is spoken to.
_ADDRESSING_WORDS = "can could would will please i you are is do did thanks thank this how what when where"
_ADDRESSING = frozenset(_ADDRESSING_WORDS.split())

_LETTERS = r"(?:[odOD]['’])?[^\W\d_]+"
_TOKEN = re.compile(rf"<(?:{'|'.join(PLACEHOLDERS)})>|{_LETTERS}")
_WORD = re.compile(_LETTERS)
_SENTENCE_END = re.compile(r"(?:^|[.!?:;\n…\"“”(]|\s[-–—])\s*[\"“'(]*$")
_MARKS_BEFORE = 16

KEEP, CUE, CAPITAL, NAME_WORD, WORD, UNKNOWN, NAME = 0, 1, 2, 4, 8, 16, 32
"""What a word is: of no interest; part of a cue for a name; a known word in capitals; a word in capitals that may be a
name or not (Grace; an unknown word that looks misspelled); outside the strict allow-list; unknown and written small;
a name."""
NAMED, SPELLED, DIGIT_WORD, ACCOUNT_CUE = 64, 128, 256, 512
"""And of what it may be a cue else: "my name is", "ada dot com", "four one five", "my login is". A rule whose cue is
not there is not tried: most of the time went into patterns that could not match."""

_NAME_CUES = """
    name names call called speaking am m im this hei heiße heisse ist appelle llamo behalf c attn holder mr mrs ms
    miss mx dr prof herr frau monsieur madame señor señora dear regards sincerely signed yours
"""
_CUE_BITS: dict[str, int] = {}
for _words, _bit in (
    (_NAME_CUES, CUE),
    ("name names called", NAMED),
    ("dot", SPELLED),
    ("zero oh one two three four five six seven eight nine double triple", DIGIT_WORD),
    ("username user login log screen screenname nick nickname handle account", ACCOUNT_CUE),
):
    for _word in _words.split():
        _CUE_BITS[_word] = _CUE_BITS.get(_word, KEEP) | _bit


class NameFinder:
    """Finds names with one strictness of the allow-list and the words that a shop adds to it."""

    def __init__(self, allow_list: AllowList, known_words: tuple[str, ...] = ()) -> None:
        self._allow_list = allow_list
        spelled = [tuple(part.lower() for part in _WORD.findall(entry)) for entry in known_words]
        self._known = frozenset(words[0] for words in spelled if len(words) == 1)
        self._known_together = tuple(words for words in spelled if len(words) > 1)
        self._kinds: dict[str, int] = _Kinds(self._kind)

    def glance(self, text: str) -> int:
        """The kinds of all words together, as bits; KEEP where there is nothing to look for."""
        found, kinds = 0, self._kinds
        for word in _WORD.findall(text):
            found |= kinds[word]
        return found

    def replace_cued(self, text: str, kinds: int, counts: dict[str, int]) -> str:
        """Replace the names that follow a cue, in a text of these kinds."""

        def replace(match: re.Match[str]) -> str:
            words = match["name"].split(" ")
            first = words[0].lower().strip(".")
            is_month_name = first in _MONTHS and (len(words) > 1 or _NAMING.match(match["cue"]) is not None)
            if (
                (first in _NOT_NAMES and not is_month_name)
                or first in self._known
                or self._starts_known(match)
                or (first in proper_words() and len(words) == 1 and not _NAMING.match(match["cue"]))
            ):
                return match.group()
            kept = next((i for i, word in enumerate(words) if i and word.lower() in _NOT_NAMES), len(words))
            counts["NAME"] = counts.get("NAME", 0) + 1
            return " ".join([f"{match['cue']}<NAME>", *words[kept:]])

        def replace_lower(match: re.Match[str]) -> str:
            words = match["name"].split(" ")
            if words[0].lower() in _NOT_NAMES:
                return match.group()
            has_surname = len(words) == 2 and words[1].lower() not in common_words()
            counts["NAME"] = counts.get("NAME", 0) + 1
            return " ".join([f"{match['cue']}<NAME>", *words[1 + has_surname :]])

        def replace_small(match: re.Match[str]) -> str:
            words = _WORD.findall(match["name"])
            if self._starts_known(match) or not all(
                self._kinds[word] & (UNKNOWN | NAME) and not _is_misspelled(word.lower()) for word in words
            ):
                return match.group()
            counts["NAME"] = counts.get("NAME", 0) + 1
            return f"{match['cue']}<NAME>"

        if kinds & (CAPITAL | NAME_WORD | NAME):
            text = _CUED_NAME.sub(replace, text)
        if kinds & NAMED:
            text = _LOWER_NAME.sub(replace_lower, text)
        if kinds & (UNKNOWN | NAME):
            text = _SMALL_NAME.sub(replace_small, text)
        return text

    def replace_unlisted(self, text: str, counts: dict[str, int]) -> str:
        """Replace names by the allow-list; words outside the strict one too."""
        tokens = [(m.start(), m.end(), m.group()) for m in _TOKEN.finditer(text)]
        kinds = [NAME if t[2] == "<NAME>" else KEEP if t[2][0] == "<" else self._kinds[t[2]] for t in tokens]
        for i in self._known_among(tokens):
            kinds[i] = KEEP
        is_name = self._names_among(text, tokens, kinds)
        pieces, end = [], 0
        at = 0
        while at < len(tokens):
            start = at
            entity = "NAME" if is_name[at] else "WORD" if kinds[at] & WORD else None
            if entity is None:
                at += 1
                continue
            while (
                at + 1 < len(tokens)
                and _is_beside(text, tokens, at)
                and (is_name[at + 1] if entity == "NAME" else (kinds[at + 1] & WORD and not is_name[at + 1]))
            ):
                at += 1
            if text[tokens[start][0] : tokens[at][1]] != f"<{entity}>":
                pieces += [text[end : tokens[start][0]], f"<{entity}>"]
                end = tokens[at][1]
                counts[entity] = counts.get(entity, 0) + 1
            at += 1
        return "".join([*pieces, text[end:]])

    def _starts_known(self, match: re.Match[str]) -> bool:
        """Whether the name that was matched begins several words that stay together."""
        rest = match.string[match.start("name") :].lower()
        return any(rest.startswith(" ".join(together)) for together in self._known_together)

    def _known_among(self, tokens: list[tuple[int, int, str]]) -> Iterator[int]:
        """Positions of words that stay because of their neighbours: Paul Smith, and Crystal right after Kesto."""
        lowered = [word.lower() for _, _, word in tokens]
        for i, word in enumerate(lowered):
            if i and lowered[i - 1] in self._known and word in name_words():
                yield i
            for together in self._known_together:
                if word == together[0] and tuple(lowered[i : i + len(together)]) == together:
                    yield from range(i, i + len(together))

    def _names_among(self, text: str, tokens: list[tuple[int, int, str]], kinds: list[int]) -> list[bool]:
        found = [bool(kind & NAME) or self._is_named(text, tokens, kinds, i) for i, kind in enumerate(kinds)]
        for i in range(len(tokens) - 2, -1, -1):
            if found[i + 1] and not found[i] and self._may_precede(text, tokens, kinds, i):
                found[i] = True
        for i in range(1, len(tokens)):  # and so is "Baker" behind one
            word = tokens[i][2]
            if (
                found[i - 1]
                and not found[i]
                and kinds[i] & (CAPITAL | NAME_WORD | UNKNOWN)
                and _is_beside(text, tokens, i - 1)
                and (kinds[i] & UNKNOWN or not tokens[i - 1][2].islower())
                and word.lower() not in _NOT_NAMES
                and word.lower() not in self._known
            ):
                found[i] = True
        for i in range(1, len(tokens) - 1):  # and "de" between two
            is_particle = found[i - 1] and found[i + 1] and tokens[i][2] in _PARTICLES
            found[i] = found[i] or (is_particle and _is_beside(text, tokens, i - 1) and _is_beside(text, tokens, i))
        return found

    def _may_precede(self, text: str, tokens: list[tuple[int, int, str]], kinds: list[int], i: int) -> bool:
        """Whether a word directly before a name is part of it: Crystal Minh, J. Moreau, Austin Powell, Rock Hudson."""
        word = tokens[i][2]
        if not _is_beside(text, tokens, i):
            return False
        if (
            kinds[i] & (NAME_WORD | UNKNOWN)
            or word in _PLACES
            or (len(word) == 1 and word.isupper() and word not in "IA")
        ):
            return True
        lowered = word.lower()
        is_plain = kinds[i] & CAPITAL and lowered not in _NOT_NAMES and lowered not in proper_words()
        return bool(is_plain) and len(word) > 2 and not _starts_sentence(text, tokens[i][0])

    def _is_named(self, text: str, tokens: list[tuple[int, int, str]], kinds: list[int], i: int) -> bool:
        """Whether a dictionary word in capitals is used as a name."""
        if not kinds[i] & NAME_WORD or tokens[i][2].isupper():
            return False
        if i + 1 < len(tokens):
            between, follower = text[tokens[i][1] : tokens[i + 1][0]], tokens[i + 1][2]
            if between == " " and kinds[i + 1] & (CAPITAL | NAME_WORD) and follower.lower() not in _NOT_NAMES:
                return True
            if (between == " " and follower in _SAID) or (between == ", " and follower.lower() in _ADDRESSING):
                return True
        if tokens[i][2].lower() in _MONTHS:
            return False
        return len(tokens) == 1 or not _starts_sentence(text, tokens[i][0])

    def _kind(self, word: str) -> int:
        lowered = word.lower().replace("’", "'")
        if lowered in self._known:
            return KEEP
        kind = _CUE_BITS.get(lowered, KEEP)
        is_listed = lowered in dictionary_words() or lowered in proper_words()
        if self._allow_list != "none" and lowered in personal_names() and (len(word) > 4 or not word.isupper()):
            return kind | NAME
        if self._allow_list == "strict" and lowered not in common_words() and len(word) > 1:
            kind |= WORD
        if not word[0].isupper():
            return kind if is_listed or self._allow_list == "none" or not _looks_like_name(word) else kind | UNKNOWN
        if word == "I":
            return kind
        if lowered in name_words() and self._allow_list != "none":
            return kind | CAPITAL | NAME_WORD
        if is_listed or self._allow_list == "none" or not _looks_like_name(word):
            return kind | CAPITAL
        return kind | CAPITAL | NAME_WORD if _is_misspelled(lowered) else kind | NAME


class _Kinds(dict[str, int]):
    """Kind by word, worked out once. Bounded: a log brings new words for ever."""

    _MOST = 200_000

    def __init__(self, kind: Callable[[str], int]) -> None:
        super().__init__()
        self._work_out = kind

    def __missing__(self, word: str) -> int:
        if len(self) >= self._MOST:
            self.clear()
        kind = self[word] = self._work_out(word)
        return kind


_STRETCHED = re.compile(r"(.)\1\1")
_LAUGHTER = re.compile(r"(?:[hj]+[aeio]+){2,}h?$|a?w+h*$|u?g+h+$|m+h*m+$")
_VOWEL = re.compile(r"[aeiouyà-ÿ]", re.IGNORECASE)


def _looks_like_name(word: str) -> bool:
    """An unknown word in capitals that is no abbreviation (USB), no camel case (PlayStation) and no Yesss."""
    if len(word) < 3 or word.isupper() or _STRETCHED.search(word.lower()) or not _VOWEL.search(word):
        return False
    if _LAUGHTER.match(word.lower()):
        return False
    return (
        word[1:].islower()
        or "'" in word
        or "’" in word
        or re.match(r"(?:Mc|Mac|De|Di|Van|Fitz)[A-Z][a-z]+$", word) is not None
    )


def _is_misspelled(lowered: str) -> bool:
    """Whether one letter more, less, other or swapped makes a common word: at the start of a sentence that is rather
    what happened than a name."""
    if len(lowered) < 5:
        return False
    common = common_words()
    letters = "abcdefghijklmnopqrstuvwxyz"
    for at in range(len(lowered) + 1):
        head, tail = lowered[:at], lowered[at:]
        if (head + tail[1:] in common and tail) or (len(tail) > 1 and head + tail[1] + tail[0] + tail[2:] in common):
            return True
        if any(head + letter + tail in common or (tail and head + letter + tail[1:] in common) for letter in letters):
            return True
        if len(head) > 1 and len(tail) > 2 and head in common and tail in common:
            return True
    return False


def _starts_sentence(text: str, at: int) -> bool:
    return _SENTENCE_END.search(text, max(at - _MARKS_BEFORE, 0), at) is not None


def _is_beside(text: str, tokens: list[tuple[int, int, str]], i: int) -> bool:
    """Whether only a space, a hyphen or the point of an initial lies between a token and the next."""
    between = text[tokens[i][1] : tokens[i + 1][0]]
    return between in (" ", "-") or (between == ". " and tokens[i][1] - tokens[i][0] == 1)
