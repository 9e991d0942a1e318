"""What is recorded of URLs."""

from __future__ import annotations

import pytest

from beeline.patch.client_span import mask_url


@pytest.mark.parametrize(
    ("url", "recorded"),
    [
        ("https://user:pw@host/a", "https://***@host/a"),
        ("https://host/a?token=abc&x=1", "https://host/a?token=***&x=1"),
        ("no proxy at 'http://user:pw@host'", "no proxy at 'http://***@host'"),
        ("https://host/a?q='b'", "https://host/a?q='b'"),
    ],
)
def test_secrets_are_masked(url: str, recorded: str) -> None:
    """User info and the values of secret parameters are not recorded; the rest is."""
    assert mask_url(url) == recorded


def test_long_texts_with_quotes_are_masked_at_once() -> None:
    """Each quote is looked at once: a query of a million quotes does not hold the caller."""
    text = "http://host/?q=" + "'" * 1_000_000
    assert mask_url(text) == text
