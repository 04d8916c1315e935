"""Replacing personal data in text by placeholders, by rules.

Here: the one scrubber that ingest and the served policy share, so that live text is encoded exactly as logged text
was. Not here: pseudonyms of ids (`orchestration.ingest.pseudonyms`), privacy guarantees (`registry.privacy`).

This is hygiene, not anonymisation: rules with name cues miss most names in phrasings that nobody foresaw. Scrubbed
text stays in the restricted zone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import phonenumbers

SCRUBBER_VERSION = "1"
"""Raised with every change that can alter an output: text scrubbed by two versions is not the same text."""

_PHONE_REGIONS = ("US", "GB", "DE")
_MAX_PASSES = 8

_NAME_WORD = r"[A-ZÀ-ÖØ-Þ][^\W\d_]*(?:['’-][^\W\d_]+)*"
_FULL_NAME = rf"{_NAME_WORD}(?:[ ]{_NAME_WORD}){{0,2}}"

# Text with no digit, no @ and none of these is returned as it came; that is most utterances, and a plain substring
# search is three times as fast as one regular expression of all cues.
_CUES = (
    "my name", "name's", "name’s", "name:", "name is", "call me", "speaking with", "speaking to", "this is", "i am",
    "i'm", "i’m", "ich hei", " mr ", " mr.", " mrs ", " mrs.", " ms ", " ms.", " dr ", " dr.", "dear ", "regards",
    "sincerely", "signed", "http", "www.",
)  # fmt: skip
_DIGIT_OR_AT = re.compile(r"[\d@]")
_DIGIT = re.compile(r"\d")

_URL = re.compile(r"(?:https?://|www\.)[^\s<>]+", re.IGNORECASE)
_EMAIL = re.compile(r"[\w.+'’%-]+\s?@\s?[\w-]+(?:\.[\w-]+)+|[\w.+-]+@[\w-]+")
_IBAN = re.compile(r"\b[A-Za-z]{2}\d{2}(?:[ ]?[A-Za-z0-9]{4}){2,7}(?:[ ]?[A-Za-z0-9]{1,3})?\b")
_CARD = re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)")
_STREET = "street|st|avenue|ave|road|rd|lane|ln|drive|dr|boulevard|blvd|court|square|sq|terrace|crescent|parkway|pkwy"
_ADDRESS = re.compile(
    rf"\b\d{{1,5}}[a-zA-Z]?,?\s+(?:[A-Z][\w'’.-]*\s+){{1,3}}(?i:{_STREET})\b\.?"
    r"|\b[A-ZÄÖÜ][a-zäöüß-]*(?:straße|strasse|str\.|weg|platz|gasse|allee)\s+\d{1,4}[a-z]?\b"
    r"|\b[A-Z]{1,2}\d[A-Z\d]?\s\d[A-Z]{2}\b"
    r"|\b[A-Z]{2}\s\d{5}(?:-\d{4})?\b"
)
_PHONE = re.compile(r"(?<![\w@])[+(]{0,2}\d[\d\s().\-/\u2010-\u2015]{5,24}\d(?!\w)")
_PHONE_SHAPE = re.compile(r"^(?:\+?1[-. ]?)?\(?\d{3}\)?[-. ]?\s?\d{3}[-. ]\d{4}$|^555[-. ]\d{4}$")
_DATE = re.compile(r"^(?:\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{2,4})(?:\s+\d{1,2})?$")
_YEARS = re.compile(r"^(?:19|20)\d{2}-(?:19|20)\d{2}$")
_NUMBER = re.compile(r"\b[A-Za-z]{0,4}-?\d{6,}(?:-\d+)*\b|\d{6,}|(?<![\w-])\d{2,}(?:-\d{2,})+(?![\w-])")
_CUED_NUMBER = re.compile(
    r"(?P<cue>\b(?:order|ticket|invoice|account|booking|reference)(?:\s(?:number|no\.?|nr\.?|id))?(?:\sis|\swas|:)?\s#?)"
    r"(?P<number>[A-Z]{0,4}-?\d[\d-]{2,})",
    re.IGNORECASE,
)
_NAME = re.compile(
    rf"(?P<cue>\b(?i:my\s+(?:full\s+|first\s+|last\s+)?name\s+is|my\s+name['’]s|name['’]s|name\s*:|call\s+me"
    rf"|speaking\s+(?:with|to)|i\s+am|i['’]m|this\s+is|ich\s+heiße|ich\s+heisse"
    rf"|mr\.?|mrs\.?|ms\.?|dr\.?|dear|(?:best\s+|kind\s+)?regards,?|sincerely,?|signed,?)\s+)(?P<name>{_FULL_NAME})"
)
_LOWER_NAME = re.compile(
    r"(?P<cue>\b(?:my\s+(?:full\s+|first\s+|last\s+)?name\s+is|my\s+name['’]s)\s+)(?P<name>[^\W\d_]{2,})", re.IGNORECASE
)

_WORDS_AFTER_CUES = """
    a an and the i it so not no yes just really very also still now here there how what why who when where
    from in on at to of with for about like looking interested sure sorry glad happy sad good great fine ok okay well
    awesome amazing perfect nice cool excited curious afraid aware thinking trying going doing being asking hoping
    wondering open available ready done right wrong new old my your our their his her that this these those all only
    more most too sir madam customer team support friend
    american british german french italian spanish indian chinese japanese christian
    monday tuesday wednesday thursday friday saturday sunday
    january february march april may june july august september october november december
"""
_NOT_NAMES = frozenset(_WORDS_AFTER_CUES.split())


@dataclass(frozen=True)
class ScrubbedText:
    """Text with placeholders, and how many of each kind were put in (`{"EMAIL": 1}`)."""

    text: str
    counts: Mapping[str, int]


_NOTHING: Mapping[str, int] = {}


def scrub(text: str) -> ScrubbedText:
    """Replace e-mail addresses, phone, card and account numbers, long digit runs, addresses, URLs and cued names.

    Idempotent: scrubbing the result changes nothing. Never raises on any string.
    """
    if _DIGIT_OR_AT.search(text) is None and not _has_cue(text):
        return ScrubbedText(text, _NOTHING)
    return _scrub_cached(text)


def _has_cue(text: str) -> bool:
    lowered = f" {text.lower()}"
    # A loop: any() over a generator takes twice as long, and this runs for every utterance.
    for cue in _CUES:  # noqa: SIM110
        if cue in lowered:
            return True
    return False


@lru_cache(maxsize=65_536)
def _scrub_cached(text: str) -> ScrubbedText:
    counts: dict[str, int] = {}
    # A replacement can bring two matches next to each other, so the rules run until nothing changes. Each
    # replacement removes a digit, an @, a URL or a name and adds none; the limit only guards against a faulty rule.
    for _ in range(_MAX_PASSES):
        before = text
        for entity, rule in _rules(text):
            text = rule(text, entity, counts)
        if text == before:
            break
    return ScrubbedText(text, counts)


def _rules(text: str) -> Iterator[tuple[str, _Rule]]:
    """The rules that this text could match, in the order in which they must run."""
    has_cue = _has_cue(text)
    n_digits = len(_DIGIT.findall(text))
    if has_cue:
        yield "URL", _URL_RULE
    if "@" in text:
        yield "EMAIL", _EMAIL_RULE
    for least_digits, entity, rule in _DIGIT_RULES:
        if n_digits >= least_digits:
            yield entity, rule
    if has_cue:
        yield "NAME", _scrub_names


_Rule = Callable[[str, str, dict[str, int]], str]
"""Text, the entity it looks for, counts to add to → new text."""


def _replacer(pattern: re.Pattern[str], accept: Callable[[str], bool] = bool) -> _Rule:
    def rule(text: str, entity: str, counts: dict[str, int]) -> str:
        def replace(match: re.Match[str]) -> str:
            if not accept(match.group()):
                return match.group()
            counts[entity] = counts.get(entity, 0) + 1
            return f"<{entity}>"

        return pattern.sub(replace, text)

    return rule


def _digits(text: str) -> str:
    return "".join(c for c in text if c.isdecimal())


def _is_card(text: str) -> bool:
    """Luhn's check."""
    digits = [int(c) for c in reversed(_digits(text))]
    doubled = (sum(divmod(2 * d, 10)) for d in digits[1::2])
    return sum(digits) > 0 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """ISO 13616: the rearranged number leaves 1 when divided by 97."""
    compact = text.replace(" ", "").upper()
    if not compact.isascii() or not compact.isalnum():
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _is_phone(text: str) -> bool:
    digits = _digits(text)
    if len(digits) < 7 or _DATE.match(text):
        return False
    if _PHONE_SHAPE.match(text) or len(digits) > 15:
        return True
    if len(digits) < 9 and not text.startswith("+"):
        return False
    return text.startswith("+") or any(_is_valid(text, region) for region in _PHONE_REGIONS)


def _is_number(text: str) -> bool:
    """Whether digits may name an account, an order or a person: not dates, spans of years or short groups."""
    is_joined = text.replace("-", "").isdecimal() and "-" in text
    return not is_joined or (len(_digits(text)) >= 8 and not _DATE.match(text) and not _YEARS.match(text))


def _is_valid(text: str, region: str) -> bool:
    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(text, region)))
    except phonenumbers.NumberParseException:
        return False


def _scrub_cued_numbers(text: str, entity: str, counts: dict[str, int]) -> str:
    def replace(match: re.Match[str]) -> str:
        counts[entity] = counts.get(entity, 0) + 1
        return f"{match['cue']}<{entity}>"

    return _CUED_NUMBER.sub(replace, text)


def _scrub_names(text: str, entity: str, counts: dict[str, int]) -> str:
    def replace(match: re.Match[str]) -> str:
        words = match["name"].split(" ")
        if words[0].lower() in _NOT_NAMES:
            return match.group()
        kept = next((i for i, word in enumerate(words) if word.lower() in _NOT_NAMES), len(words))
        counts[entity] = counts.get(entity, 0) + 1
        return " ".join([f"{match['cue']}<{entity}>", *words[kept:]])

    return _LOWER_NAME.sub(replace, _NAME.sub(replace, text))


_URL_RULE = _replacer(_URL)
_EMAIL_RULE = _replacer(_EMAIL)
_DIGIT_RULES = (
    (8, "IBAN", _replacer(_IBAN, _is_iban)),
    (13, "CARD", _replacer(_CARD, _is_card)),
    (3, "NUMBER", _scrub_cued_numbers),
    (1, "ADDRESS", _replacer(_ADDRESS)),
    (7, "PHONE", _replacer(_PHONE, _is_phone)),
    (3, "NUMBER", _replacer(_NUMBER, _is_number)),
)
"""Fewest digits of the text for which the rule can match, entity, rule. Most specific first."""
