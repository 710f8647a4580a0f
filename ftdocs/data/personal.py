"""Personal data, secrets and licence notices in text: found by their form, counted, and masked where that is wanted.

What has a form is found: addresses of e-mail and of the internet, bank accounts and cards, social security numbers of
the United States, private keys, keys that begin as those of large services do, and telephone numbers that begin with +,
or with 0 and then have a mark or a blank, or have the North American form. Not looked for is what has no form, or one
that much else has too: names of people, postal addresses, dates of birth, passwords, keys of other services, other
countries' identity numbers, and telephone numbers in one piece or in other forms, such as 555 123 4567. Whoever must
not train on them has to look.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
# Domains that are reserved for examples (RFC 2606) belong to nobody.
EXAMPLE = re.compile(
    r"(?:^|[.@])(?:example\.(?:com|org|net|edu)|[\w-]+\.(?:example|test|invalid|localhost))$", re.I
)


def real_address(text: str) -> bool:
    """Whether an e-mail address can be somebody's: those of example.com and the like are not."""
    return not EXAMPLE.search(text) and not text.startswith(("git@", "noreply@", "no-reply@"))


def luhn(text: str) -> bool:
    """Whether the last digit of a card's number is the check digit of the others (ISO/IEC 7812)."""
    digits = [int(digit) for digit in re.sub(r"\D", "", text)]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def iban(text: str) -> bool:
    """Whether an account number's check digits fit (ISO 13616: the remainder by 97 is 1)."""
    plain = re.sub(r"\s", "", text)
    return (
        15 <= len(plain) <= 34
        and int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1
    )


def phone(text: str) -> bool:
    """Whether a number has as many digits as one of a telephone (ITU-T E.164).

    What begins with 0 and is all pairs of digits is one if it is five that do not count up, as in France.
    """
    parts = re.findall(r"\d+", text)
    if text.startswith("0") and {len(part) for part in parts} == {2}:
        return len(parts) == 5 and parts != sorted(parts)
    return 9 <= sum(map(len, parts)) <= 15


def public_address(text: str) -> bool:
    """Whether an internet address can be somebody's: private and reserved ones are not."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def always(_: str) -> bool:
    """What has this form is what it seems."""
    return True


# The form of each kind, and what tells it from what only looks like it. The first kind that fits a place has it.
KINDS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "secret": (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[\s\S]{0,8000}?-----END [A-Z ]*PRIVATE KEY-----)?"
            r"|\b(?:A[KS]IA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22,}|gl(?:pat|rt|dt)-[\w-]{20,}"
            r"|hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{32,}|[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|npm_[A-Za-z0-9]{36}"
            r"|pypi-[\w-]{50,}|xox[abeprs]-[A-Za-z0-9-]{20,}|xapp-[A-Za-z0-9-]{20,}|AIza[\w-]{35}"
            r"|SG\.[\w-]{22}\.[\w-]{43}|dop_v1_[0-9a-f]{64}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})(?![\w-])"
        ),
        always,
    ),
    "e-mail": (
        re.compile(r"(?<![\w.+/-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"),
        real_address,
    ),
    "account": (re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), iban),
    "card": (re.compile(r"(?<![\w.-])[3-6]\d{3}(?:[ -]?\d{4}){2}[ -]?\d{1,7}(?![\w.-])"), luhn),
    "social security": (
        re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"),
        always,
    ),
    "telephone": (
        re.compile(
            r"(?<![\w.+/-])(?:\+\d{1,3}[ .-]?(?:\(0?\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}"
            r"|\(\d{3}\) ?\d{3}[-. ]\d{4}|(?:1-)?\d{3}-\d{3}-\d{4}|[2-9]\d\d\.\d{3}\.\d{4}(?!\.\d))(?![\w-])"
            # With 0, or 00 and the country, before it; no date, and no part of a longer row of numbers.
            r"|(?<![\w.+/-])(?<!\d )(?!0\d[ .-]\d\d[ .-](?:19|20)\d\d)(?:\(0[1-9]\d{0,3}\)|00?[1-9]\d{0,3}(?=[ /-]))"
            r"(?: ?[/-] ?| )?\d{2,8}(?:[ -]\d{2,8}){0,4}(?![ ,.:/-]?\d|[\w-])"
        ),
        phone,
    ),
    "internet address": (
        re.compile(
            r"(?<![\w.-])(?<![vV]ersion )(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)"
            r"|(?<![\w:.])[23][0-9A-Fa-f]{3}(?:(?:::?[0-9A-Fa-f]{1,4}){1,7}(?:::)?|::)(?!\w|:\w)"
        ),
        public_address,
    ),
}


def personal(text: str) -> Counter[str]:
    """How often each kind of personal data or secret stands in a text; never what it is."""
    found: Counter[str] = Counter()
    replaced(text, found)
    return found


def mask(text: str) -> str:
    """Text with ``[e-mail]``, ``[telephone]`` and so on in place of what :func:`personal` counts."""
    return replaced(text, Counter())


def replaced(text: str, found: Counter[str]) -> str:
    """Masked text; ``found`` gets the counts."""
    for kind, (form, is_one) in KINDS.items():

        def masked(match: re.Match[str], kind: str = kind, is_one: Callable[[str], bool] = is_one) -> str:
            if not is_one(match[0]):
                return match[0]
            found[kind] += 1
            return f"[{kind}]"

        text = form.sub(masked, text)
    return text


def mask_row(row: Row) -> Row:
    """A checked row with every text that is trained on masked; its number and its group stay."""
    if "messages" in row:
        return {**row, "messages": [{**turn, "content": mask(turn["content"])} for turn in row["messages"]]}
    kept = ("row", "group", "label")
    return {
        name: mask(value) if isinstance(value, str) and name not in kept else value
        for name, value in row.items()
    }


# What a notice says, most telling first; a document counts once for each that it holds.
LICENCES = {
    "all rights reserved": re.compile(r"all\s+rights\s+reserved", re.I),
    "confidential": re.compile(
        r"\b(?:strictly|company|private\s+and)\s+confidential\b|^[^\w\n]*confidential[^\w\n]*$|\bfor\s+internal\s+use\s+only\b|"
        r"\bproprietary\s+and\s+confidential\b",
        re.I | re.M,
    ),
    "copyright": re.compile(
        r"(?:copyright|\(c\)|©)[\s:]+(?:\(c\)\s*|©\s*)?(?:19|20)\d\d|©\s*\w|copyright\s+(?:©|\(c\))", re.I
    ),
    "MIT": re.compile(r"\bMIT\s+licen[cs]e|Permission\s+is\s+hereby\s+granted,\s+free\s+of\s+charge", re.I),
    "Apache-2.0": re.compile(r"\bApache\s+licen[cs]e\b|\bApache-2\.0\b", re.I),
    "BSD": re.compile(r"\bBSD(?:[- ]\d-clause)?\s+licen[cs]e|\bBSD-\d-Clause\b", re.I),
    "LGPL or AGPL": re.compile(
        r"\b[LA]GPL\b|GNU\s+(?:Lesser|Affero)\s+General\s+Public\s+Licen[cs]e", re.I
    ),
    "GPL": re.compile(r"(?<![LA])\bGPL\b|GNU\s+General\s+Public\s+Licen[cs]e", re.I),
    "MPL": re.compile(r"\bMozilla\s+Public\s+Licen[cs]e|\bMPL-\d", re.I),
    "Creative Commons, no derivatives or not commercial": re.compile(
        r"\bCC[- ]BY(?:-SA)?-N[CD]|creativecommons\.org/licenses/by(?:-sa)?-n[cd]"
        r"|Attribution-(?:NonCommercial|NoDeriv)", re.I
    ),
    "Creative Commons": re.compile(
        r"\bCC[- ](?:BY|0)\b(?!-N[CD])|creativecommons\.org/licenses/by(?:-sa)?/|Creative\s+Commons", re.I
    ),
}  # fmt: skip
SPDX = re.compile(r"SPDX-License-Identifier:\s*([A-Za-z0-9.+-]+)")


def licences(text: str) -> set[str]:
    """The licences and notices of rights that a text names, by kind; an SPDX identifier by itself.

    To name a licence is not to be under it: a page that compares licences names several. It says where to look.
    """
    return {name for name, form in LICENCES.items() if form.search(text)} | set(SPDX.findall(text))
