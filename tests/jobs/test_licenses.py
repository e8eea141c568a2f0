"""The license that a page declares: where it is written, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.page.licenses import License, of_page

LD = '<script type="application/ld+json">'
BY_SA = "https://creativecommons.org/licenses/by-sa/4.0/"


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        (f"<a rel='license' href='{BY_SA}'>CC</a>", License("cc-by-sa-4.0", "rel")),
        ("<link rel='nofollow License' href='/terms/reuse'>", License("https://x.test/terms/reuse", "rel")),
        ("<a rel=license href=//creativecommons.org/publicdomain/zero/1.0/>", License("cc0-1.0", "rel")),
        (f'{LD}{{"license": "{BY_SA}deed.de"}}</script>', License("cc-by-sa-4.0", "json_ld")),
        (
            f'{LD}{{"@graph": [{{"@type": "WebSite"}}, {{"license": {{"@id": "https://x.test/l"}}}}]}}</script>',
            License("https://x.test/l", "json_ld"),
        ),
        (f"<p>As <a href='{BY_SA}'>this</a>, <a href='{BY_SA}legalcode'>this</a>.", License("cc-by-sa-4.0", "link")),
        # Two licenses are those of two things; a word is none; a name that is no URL is none.
        (f"<a href='{BY_SA}'>text</a><a href='http://creativecommons.org/licenses/by/2.0/'>picture</a>", None),
        ("<p>Our license and her driving license; see creativecommons.org for more.</p>", None),
        (LD + '{"license": "All rights reserved"</script>', None),
        ("<a rel='license' href='mailto:a@b.test'>write</a>", None),
    ],
)  # fmt: skip
def test_what_a_page_declares(html: str, expected: License | None) -> None:
    assert of_page(f"<html><body>{html}</body></html>", "https://x.test/page") == expected


@given(st.text(), st.text())
def test_any_page_has_one_or_none(html: str, url: str) -> None:
    for page in (
        html,
        f"<a rel=license href='{html}'>",
        f'<script type="application/ld+json">{html}</script> "license"',
    ):
        found = of_page(page, url)
        assert found is None or (found.name and len(found.name) <= 200)
