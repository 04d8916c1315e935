"""Personal data that has a shape: addresses of mail and houses, numbers with check digits, ids after their cue.

Here: one rule per kind, as a function from text to text. Not here: names (`scrub_names`), the order and the loop
(`scrubbing`). Patterns are written so that sizes, prices, dates, model numbers and spans of years stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache

import phonenumbers

from rl.encoders.vocabulary import dictionary_words, proper_words

Rule = Callable[[str, str, dict[str, int]], str]
"""Text, the placeholder's name, counts to add to → new text."""

_PHONE_REGIONS = ("US", "GB", "DE")

_DIGIT = re.compile(r"\d")
_URL = re.compile(
    r"(?:https?://|www\.)[^\s<>]+|(?<![\w.-])[\w-]+(?:\.[\w-]+){0,4}\.(?:com|org|net|io|info|de|uk)/[^\s<>]+",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"[\w.+'’%-]+\s?@\s?[\w-]+(?:\.[\w-]+)+|[\w.+-]+@[\w-]+")
_SPELLED_EMAIL = re.compile(
    r"\b[\w+-]+(?:(?:\.|\s(?:dot|underscore|dash)\s)[\w+-]+){0,5}\s?(?:\sat\s|\(at\)|\[at\])\s?[\w-]+"
    r"(?:(?:\sdot\s|\s?\(dot\)\s?|\s?\[dot\]\s?|\.)[\w-]+){0,4}(?:\sdot\s|\s?\(dot\)\s?|\s?\[dot\]\s?|\.)"
    r"(?:com|org|net|edu|co|uk|de|example|io|info)\b(?:(?:\sdot\s|\.)uk)?",
    re.IGNORECASE,
)
_HANDLE = re.compile(r"(?<![\w@.])@[^\W\d][\w.]*\w")
_IBAN = re.compile(r"\b[A-Za-z]{2}\d{2}(?:[ ]?[A-Za-z0-9]{4}){2,7}(?:[ ]?[A-Za-z0-9]{1,3})?\b")
_CARD = re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)")

_STREET = (
    "street|st|avenue|ave|road|rd|lane|ln|drive|dr|boulevard|blvd|court|ct|square|sq|terrace|crescent|parkway|pkwy|way"
    "|place|pl|plaza|close|row|walk|gardens|mews|quay|hill|highway|hwy"
)
_SURE_STREET = "street|st|avenue|ave|road|rd|lane|ln|boulevard|blvd|crescent|parkway|pkwy|terrace"
# Words that stand between a number and "street" or "road" without making an address: "2 minutes down the road".
_NO_STREET_NAME = (
    "minutes?|mins?|hours?|days?|nights?|weeks?|miles?|km|kms|blocks?|people|persons?|kids|times?|of|the|a|an|in|on|"
    "off|at|to|from|down|up|by|for|and|or|is|are|more|other|different|main"
)
_CAPITALS = r"[A-ZÀ-Ý][\w'’-]*"
_ADDRESS = re.compile(
    # 12 Long Acre Road; 5500 Phinney Avenue N; then the same written small, with fewer kinds of street
    rf"\b\d{{1,5}}[a-zA-Z]?,?\s+(?:(?:[A-Z][\w'’.-]*|\d{{1,3}}(?:st|nd|rd|th))\s+){{1,4}}(?i:{_STREET})\b\.?"
    r"(?:\s(?i:[nsew]{1,2})\b)?"
    rf"|\b\d{{1,5}}[a-z]?,?\s+(?:(?!(?:{_NO_STREET_NAME})\b)(?:[a-z'’-]{{3,}}|\d{{1,3}}(?:st|nd|rd|th))\s+){{1,2}}"
    rf"(?:{_SURE_STREET})\b\.?"
    # Hauptstraße 12; 48 Rue de la Paix; Calle Mayor 14
    r"|\b[A-ZÄÖÜ][\wäöüß-]*(?:straße|strasse|str\.|weg|platz|gasse|allee|gracht|straat|laan)\s+\d{1,4}[a-z]?\b"
    r"|\b\d{1,4}(?:\s?(?:bis|ter))?,?\s+(?i:rue|avenue|boulevard|place|allée|quai|chemin|impasse)\s+"
    rf"(?:d[eu]s?\s|de\sla\s|de\sl['’]|l[ae]s?\s|d['’])?{_CAPITALS}(?:[\s-]{_CAPITALS}){{0,2}}"
    r"|\b(?i:calle|avenida|plaza|paseo|via|viale|piazza|corso|rua)\s+(?:[a-z]{2,3}\s){0,2}"
    rf"{_CAPITALS}(?:\s(?:[a-z]{{2,3}}\s)?{_CAPITALS}){{0,2}},?\s+(?:n[.ºo°]*\s?)?\d{{1,4}}\b"
    r"|\b(?i:p\.?\s?o\.?\s?box)\s+\d+\b"
    r"|\b(?i:apt|apartment|suite|ste|flat)\.?\s#?\d{1,4}[a-zA-Z]?\b(?!\s(?:bed|bath|room|people|person|floor))"
    # Postcodes: SW1A 1AA, NY 10001
    r"|\b[A-Z]{1,2}\d[A-Z\d]?\s\d[A-Z]{2}\b"
    r"|\b[a-z]{1,2}\d[a-z\d]?\s\d(?!st|nd|rd|th|am|pm|kg|cm|mm|km|gb|tb|mb|in|ft|oz|lb|hr)[a-z]{2}\b"
    r"|\b[A-Z]{2}\s\d{5}(?:-\d{4})?\b"
)
_CUED_POSTCODE = re.compile(
    r"(?P<cue>\b(?:zip|zip\s?code|postal\s?code|post\s?code|postcode)(?:\sis|\swas)?:?\s)"
    r"(?P<value>[A-Z\d][A-Z\d -]{2,8}[A-Z\d]\b)",
    re.IGNORECASE,
)
# What follows an address: "…, 94110 San Mateo", "… san mateo, ny 75227".
_AFTER_ADDRESS = re.compile(
    rf"<ADDRESS>(?:,?\s+(?:(?:{_CAPITALS}|<NAME>)\s?){{1,3}})?,?\s+(?:[A-Za-z]{{2}}\s)?\d{{4,5}}(?:-\d{{4}})?\b"
    rf"(?:\s(?!I\b){_CAPITALS})?"
    r"|<ADDRESS>,?\s+(?:[a-z]+\s){0,2}[a-z]+,?\s[a-z]{2}\s\d{5}\b"
    rf"|<ADDRESS>(?:,?\s+(?:{_CAPITALS}\s?){{0,3}},?\s*<ADDRESS>)+"
    r"|(?<=in\s|to\s|at\s|is\s|of\s)\d{5}\s<ADDRESS>"
)
_PHONE = re.compile(r"(?<![\w@])[+(]{0,2}\d[\d\s().\-/\u2010-\u2015]{5,24}\d(?!\w)")
_PHONE_SHAPE = re.compile(r"^(?:\+?1[-. ]?)?\(?\d{3}\)?[-. ]?\s?\d{3}[-. ]\d{4}$|^555[-. ]\d{4}$")
_CUED_PHONE = re.compile(
    r"(?P<cue>\b(?:phone|mobile|cell|cellphone|tel|telephone|fax|whatsapp"
    r"|call\s(?:me|us|her|him)|text\s(?:me|us)|ring\s(?:me|us)|reach\s(?:me|us))"
    r"(?:\s(?:number|no\.?|is|at|on|under))*:?\s{1,2})(?P<value>\+?\(?\d[\d\s().-]{4,18}\d\b)",
    re.IGNORECASE,
)
_DIGIT_WORD = "zero|oh|one|two|three|four|five|six|seven|eight|nine|double|triple"
_SPELLED_NUMBER = re.compile(rf"\b(?:{_DIGIT_WORD})(?:[\s,-]+(?:{_DIGIT_WORD})){{6,}}\b", re.IGNORECASE)
_DATE = re.compile(r"^(?:\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{2,4})(?:\s+\d{1,2})?$")
_MONTH = (
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    "|nov(?:ember)?|dec(?:ember)?"
)
_BIRTH_DATE = re.compile(
    r"(?P<cue>\b(?:born(?:\son|\sin)?|date\sof\sbirth|birth\s?date|birthday|d\.?o\.?b\.?)(?:\sis|\swas)?:?\s+"
    r"(?:on\s|the\s)?)"
    rf"(?P<value>\d{{1,4}}[-./]\d{{1,2}}[-./]\d{{1,4}}|(?:{_MONTH})\.?\s\d{{1,2}}(?:st|nd|rd|th)?(?:,?\s\d{{4}})?"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?\s(?:of\s)?(?:{_MONTH})\.?(?:,?\s\d{{4}})?)",
    re.IGNORECASE,
)
_YEARS = re.compile(r"^(?:19|20)\d{2}-(?:19|20)\d{2}$")
_NUMBER = re.compile(
    r"(?<!@)\b[A-Za-z]{0,4}-?\d{6,}(?:-\d+)*\b|(?<![@\d])\d{6,}|(?<![\w-])\d{2,}(?:-\d{2,})+(?![\w-])"
    r"|\b\d{1,3}(?:\.\d{1,3}){3}\b"
)
_CUED_NUMBER = re.compile(
    r"(?P<cue>\b(?:order|ticket|invoice|account|booking|reference|ref|reservation|confirmation|tracking|customer|client"
    r"|member|membership|policy|contract|case|claim|serial|passport|licen[cs]e|social\ssecurity|ssn|tax|student"
    r"|employee|patient|pin)(?:\s(?:number|code|no\.?|nr\.?|num|id))?(?:\sis|\swas|:|\s=)?\s?#?:?\s?)"
    r"(?P<value>(?=[A-Z-]{0,8}\d)[A-Z]{0,4}-?\d[A-Z\d-]{2,}\b|(?-i:(?=[A-Z\d-]*\d)[A-Z\d][A-Z\d-]{4,}\b))",
    re.IGNORECASE,
)
# "order 100 chairs", "ticket 2 days", "case of 24": a short number before a plain word is an amount.
_AMOUNT_AFTER = re.compile(
    r"\s(?:euros?|dollars?|pounds?|pieces?|pairs?|units?|days?|items?|chairs?|people)\b", re.IGNORECASE
)

_CUED_ACCOUNT = re.compile(
    r"(?P<cue>\b(?:(?:user\s?name|user\s?id|login\sname|log\sin\sas|account\s(?:name|id)|screen\s?name)(?:\s?(?:is|was|:|=))?"
    r"|(?:login|nick\s?name|handle)\s?(?:is|:|=))\s{1,2})"
    r"(?P<value>(?!(?:is|was|and|or|to|for|in|on|with|not|page|here|please|details|the|a|my|your)\b)"
    r"@?[A-Za-z][\w.-]{2,}\b|[A-Z\d][A-Z\d-]{5,}\b)",
    re.IGNORECASE,
)
_ACCOUNT = re.compile(
    r"(?<![\w@./-])(?P<letters>[a-z]{4,}(?:[._][a-z]+)*)[._]?\d{2,}(?![\w/-])"
    r"|\b(?=[A-Z]*\d)(?=(?:\d*[A-Z]){3})(?=(?:[A-Z]*\d){3})[A-Z\d]{10,}\b"
)


def rules(text: str, *, is_spelled: bool, has_digit_words: bool, has_account_cue: bool) -> Iterator[tuple[str, Rule]]:
    """Placeholder and rule, for the rules that this text could match, in the order in which they must run."""
    n_digits = len(_DIGIT.findall(text))
    if "." in text and ("/" in text or "www." in text.lower()):
        yield "URL", _URL_RULE
    if "@" in text:
        yield from _AT_RULES
    if is_spelled or "(at" in text or "[at" in text:
        yield "EMAIL", _SPELLED_EMAIL_RULE
    if has_digit_words:
        yield "PHONE", _SPELLED_NUMBER_RULE
    if has_account_cue:
        yield "ACCOUNT", _CUED_ACCOUNT_RULE
    for least_digits, entity, rule in _DIGIT_RULES:
        if n_digits >= least_digits:
            yield entity, rule


def _replacer(
    pattern: re.Pattern[str],
    accept: Callable[[re.Match[str]], bool] | None = None,
    needs: re.Pattern[str] | None = None,
) -> Rule:
    """Replaces what the pattern finds; after a group `cue`, which stays. `needs` is a cheap part of every match."""

    def rule(text: str, entity: str, counts: dict[str, int]) -> str:
        if needs is not None and needs.search(text) is None:
            return text

        def replace(match: re.Match[str]) -> str:
            if accept is not None and not accept(match):
                return match.group()
            counts[entity] = counts.get(entity, 0) + 1
            return f"{match.groupdict().get('cue') or ''}<{entity}>"

        return pattern.sub(replace, text)

    return rule


def _merge_address(text: str, entity: str, counts: dict[str, int]) -> str:
    return _AFTER_ADDRESS.sub("<ADDRESS>", text) if "<ADDRESS>" in text else text


def _digits(text: str) -> str:
    return "".join(c for c in text if c.isdecimal())


def _is_card(match: re.Match[str]) -> bool:
    """Luhn's check."""
    digits = [int(c) for c in reversed(_digits(match.group()))]
    doubled = (sum(divmod(2 * d, 10)) for d in digits[1::2])
    return sum(digits) > 0 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_iban(match: re.Match[str]) -> bool:
    """ISO 13616: the rearranged number leaves 1 when divided by 97."""
    compact = match.group().replace(" ", "").upper()
    if not compact.isascii() or not compact.isalnum():
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _is_phone(match: re.Match[str]) -> bool:
    text = match.group()
    digits = _digits(text)
    if len(digits) < 7 or _DATE.match(text):
        return False
    if _PHONE_SHAPE.match(text) or len(digits) > 15:
        return True
    if len(digits) < 9 and not text.startswith("+"):
        return False
    return text.startswith("+") or any(_is_valid(text, region) for region in _PHONE_REGIONS)


def _is_cued_phone(match: re.Match[str]) -> bool:
    return len(_digits(match["value"])) >= 6 and not _DATE.match(match["value"])


@lru_cache(maxsize=4_096)
def _is_valid(text: str, region: str) -> bool:
    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(text, region)))
    except phonenumbers.NumberParseException:
        return False


def _is_number(match: re.Match[str]) -> bool:
    """Whether digits may name an account, an order or a person: not dates, spans of years or short groups."""
    text = match.group()
    is_joined = text.replace("-", "").isdecimal() and "-" in text
    return not is_joined or (len(_digits(text)) >= 8 and not _DATE.match(text) and not _YEARS.match(text))


def _is_cued_number(match: re.Match[str]) -> bool:
    value = match["value"]
    is_short = value.isdecimal() and len(value) <= 4
    return not _DATE.match(value) and not (is_short and _AMOUNT_AFTER.match(match.string, match.end()))


def _is_account(match: re.Match[str]) -> bool:
    """A word that nobody knows, with digits behind it: `aphoenix939`, but not `covid19` or `windows10`."""
    letters = match["letters"]
    return letters is None or not any(
        word in dictionary_words() or word in proper_words() for word in re.split(r"[._]", letters)
    )


_URL_RULE = _replacer(_URL)
_AT_RULES = (("EMAIL", _replacer(_EMAIL)), ("ACCOUNT", _replacer(_HANDLE)))
_SPELLED_EMAIL_RULE = _replacer(_SPELLED_EMAIL)
_SPELLED_NUMBER_RULE = _replacer(_SPELLED_NUMBER)
_CUED_ACCOUNT_RULE = _replacer(_CUED_ACCOUNT)
_DIGIT_RULES = (
    (8, "IBAN", _replacer(_IBAN, _is_iban)),
    (13, "CARD", _replacer(_CARD, _is_card)),
    (3, "DATE", _replacer(_BIRTH_DATE)),
    (3, "NUMBER", _replacer(_CUED_NUMBER, _is_cued_number)),
    (1, "ADDRESS", _replacer(_ADDRESS)),
    (3, "ADDRESS", _replacer(_CUED_POSTCODE, lambda match: _DIGIT.search(match["value"]) is not None)),
    (4, "ADDRESS", _merge_address),
    (6, "PHONE", _replacer(_CUED_PHONE, _is_cued_phone, re.compile(r"\d[\d\s().-]{4}"))),
    (7, "PHONE", _replacer(_PHONE, _is_phone, re.compile(r"\d[\d\s().\-/\u2010-\u2015]{5,24}\d"))),
    (4, "NUMBER", _replacer(_NUMBER, _is_number, re.compile(r"\d{6}|\d-\d|\d\.\d+\."))),
    (2, "ACCOUNT", _replacer(_ACCOUNT, _is_account, re.compile(r"[a-z][._]?\d\d|[A-Z\d]{10}"))),
)
"""Fewest digits of the text for which the rule can match, entity, rule. Most specific first."""
