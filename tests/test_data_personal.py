"""Personal data and licences are found by their form, counted by kind, and masked."""

import pytest

from ftdocs.data.personal import licences, mask, mask_row, personal
from ftdocs.data.prepare import load_splits
from ftdocs.recipe import Data

FOUND = {
    "write to jo.doe+x@acme.co.uk now": "e-mail",
    "call +49 30 1234567 or": "telephone",
    "call (555) 123-4567.": "telephone",
    "call 555-123-4567": "telephone",
    "call 1-800-555-0199 today": "telephone",
    "call 555.123.4567.": "telephone",
    "call 030 1234567, or": "telephone",
    "call (030) 123456-78": "telephone",
    "call 0171/1234567": "telephone",
    "call 0171 / 123 45 67": "telephone",
    "call 020 7946 0958": "telephone",
    "call 01 45 23 67 89": "telephone",
    "call 0049 30 1234567": "telephone",
    "pay to DE89 3704 0044 0532 0130 00 please": "account",
    "card 4111 1111 1111 1111": "card",
    "number 123-45-6789": "social security",
    "from 8.8.8.8 today": "internet address",
    "from 2001:4860:4860::8888: a reply": "internet address",
    f"export TOKEN=ghp_{'a1' * 18}": "secret",
    f"github_pat_11ABCDEFG0{'a1B2' * 4}_{'c3D4' * 14}": "secret",
    f"stripe.api_key = 'sk_live_{'4eC39H' * 4}'": "secret",
    f"glpat-{'ab1-' * 5}": "secret",
    f"ASIA{'A1B2' * 4}": "secret",
    f"Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.{'dozjgN' * 6}": "secret",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----": "secret",
}
NOTHING = [
    "jo@example.com and jo@host.invalid", "git@github.com:org/name", "a decorator @property.setter",
    "DE89 3704 0044 0532 0130 01", "4111 1111 1111 1112", "127.0.0.1 and 192.168.0.1 and 0.0.0.0", "version 1.2.3",
    "2026-11-24 10:00:00", "1,234,567,890 rows", "arXiv:2106.09685", "0.123456789", "1e-10", "tensor([1234, 5678])",
    "ISBN 978-3-16-148410-0", "3.14159265358979", "000-12-3456",
    "ISBN 0-306-40615-2", "978 0 306 40615 7", "ISSN 0378-5955", "01-02-2026 10:30", "01.02.2026 1234",
    "2019-2020 1999",
    "01 02 03 04 05", "01 23 45 67 89 10", "1 023 456 789", "192.168.010.0001", "version 555.123.4567.1",
    "0000-0002-1825-0097", "05:30 1234567", "007 1234", "10:20:30:40", "std::vector and 2001:db8::1", "1990 2000 2010",
    "sk_learn_and_others_are_names_of_modules", "0.5 1234567", "tensor([0, 1234567])", "2026-01-02 03:04:05.123456",
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind"), FOUND.items())
def test_each_kind_is_found_once_and_masked(text, kind):
    assert personal(text) == {kind: 1}
    masked = mask(text)
    assert f"[{kind}]" in masked and not personal(masked)


@pytest.mark.parametrize("text", NOTHING)
def test_what_only_looks_like_it_stays(text):
    assert not personal(text) and mask(text) == text


def test_licences_by_kind():
    notices = {
        "SPDX-License-Identifier: MPL-2.0": {"MPL-2.0", "MPL"},
        "Released under the MIT License.": {"MIT"},
        "Copyright (c) 2020 A. All rights\nreserved.": {"copyright", "all rights reserved"},
        "GNU Lesser General Public License": {"LGPL or AGPL"},
        "under the GPL": {"GPL"},
        "CC BY-NC 4.0": {"Creative Commons, no derivatives or not commercial"},
        "CC BY 4.0": {"Creative Commons"},
        "a limit, a permit, and the rights of all": set(),
    }
    assert {text: licences(text) for text in notices} == notices


def test_a_recipe_masks_what_is_trained_on_in_every_format(tmp_path):
    path = tmp_path / "faq.jsonl"
    path.write_text(
        "".join(f'{{"prompt": "Who is {n}?", "completion": "jo{n}@acme.io"}}\n' for n in range(9))
    )
    plain = load_splits(Data(path=path))
    assert all("@acme.io" in row["completion"] for row in plain.train)
    masked = load_splits(Data(path=path, personal="mask"))
    assert all(row["completion"] == "[e-mail]" for row in [*masked.train, *masked.validation, *masked.test])
    chat = {"row": 1, "group": "a@acme.io", "messages": [{"role": "user", "content": "a@acme.io"}]}
    assert mask_row(chat) == {
        "row": 1, "group": "a@acme.io", "messages": [{"role": "user", "content": "[e-mail]"}],
    }  # fmt: skip
