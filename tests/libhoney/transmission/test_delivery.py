"""One batch: its URL, what each answer means, retries, and one outcome for each event."""

from __future__ import annotations

import json
import random
import sys
import time
from email.utils import formatdate
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libhoney.process import exit as process_exit
from libhoney.transmission import encoding
from libhoney.transmission.batch import Destination, Packed
from libhoney.transmission.delivery import (
    LOST_TWICE,
    Delivery,
    batch_url,
)
from libhoney.transmission.encoding import SEPARATOR, compression_named
from libhoney.transmission.retry import MAX_RETRY_AFTER, RETRY_DELAYS
from tests.receiver import ZSTD

ALL_WELL = b'[{"status":202},{"status":202},{"status":202}]'
BUSY = {"status": 429}
DATASETS = [
    "plain",
    "//host/x",
    "../events",
    "a#b",
    "a/b?c",
    "..",
    ".",
    "...",
    "a b",
    "100%",
    "%2e%2e",
    "dätä ☃",
    "a\\b",
    "a;b=c&d",
    "\r\nX: y",
]


def delivery(count: int = 3) -> Delivery:
    text = b"".join(b"%d" % number + SEPARATOR for number in range(count))
    one = Delivery(Destination("http://host", "key", "things"), 0.0)
    one.batch.add(Packed(one.batch.destination, text, list(range(count))))
    one.close()
    return one


def statuses(one: Delivery) -> list[int]:
    return [outcome.status for outcome in one.outcomes]


@pytest.mark.parametrize("dataset", DATASETS)
def test_dataset_is_one_encoded_segment(dataset: str) -> None:
    """A dataset changes neither the host nor the path the key is sent to."""
    url = batch_url(Destination("https://host/prefix/", "key", dataset))
    start, segment = url[: len("https://host/prefix/1/batch/")], url[28:]
    assert start == "https://host/prefix/1/batch/"
    assert not set(segment) & set("/?#\\\r\n ")
    assert segment not in (".", "..")
    assert unquote(segment) == dataset


def test_half_of_a_surrogate_pair_is_replaced_in_the_url() -> None:
    """A dataset that has no UTF-8 form still has a URL."""
    assert batch_url(Destination("http://host", "key", "a\ud800")) == "http://host/1/batch/a%3F"


def test_accepted_events_are_done() -> None:
    """A 202 for each event, in a 200 or a 202: nothing is left to do."""
    for status in (200, 202):
        one = delivery()
        assert json.loads(one.body()) == [0, 1, 2]
        assert one.responded(status, {}, ALL_WELL) is None
        assert [tuple(outcome) for outcome in one.outcomes] == [(202, "", None)] * 3


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 599])
def test_passing_failure_is_retried_whole(status: int) -> None:
    """408, 429 and every 5xx: again, with all events, until it works."""
    one = delivery()
    assert one.responded(status, {}, b"") is not None
    assert json.loads(one.body()) == [0, 1, 2]
    assert one.responded(200, {}, ALL_WELL) is None
    assert statuses(one) == [202] * 3
    assert one.retried == 3


@pytest.mark.parametrize("name", ["gzip", "zstd", None])
@pytest.mark.parametrize("quick", [True, False])
def test_what_goes_again_is_compressed_in_the_same_way(name: str | None, quick: bool) -> None:
    """All of a batch, or of one that is held compressed a part."""
    if name == "zstd":
        pytest.importorskip(ZSTD)
    with pytest.MonkeyPatch.context() as patch:
        if not quick:
            patch.setitem(sys.modules, "isal", None)
        compression = compression_named(name, 1)

    def sent() -> Any:
        return json.loads(compression.decompress(one.body(compression)))

    one = delivery(5)
    before = one.batch.size
    assert sent() == sent() == [0, 1, 2, 3, 4]
    assert not any(some.text for some in one.batch.packed)
    answer = [{"status": s} for s in (202, 429, 400, 500, 408)]
    assert one.responded(200, {}, json.dumps(answer).encode()) is not None
    assert sent() == sent() == [1, 3, 4]
    one.batch.recount()
    assert (one.batch.count, one.batch.size) == (5, before)
    assert one.batch.metadata == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("status", [201, 204, 301, 302, 307, 308, 400, 401, 403, 404, 413])
def test_lasting_refusal_is_not_retried(status: int) -> None:
    """The answer's status and words are every event's; redirects are not followed."""
    one = delivery()
    assert one.responded(status, {}, b'{"error":"no such luck"}') is None
    assert [tuple(o) for o in one.outcomes] == [
        (status, '{"error":"no such luck"}', "no such luck")
    ] * 3


def test_single_events_that_may_pass_are_retried_alone() -> None:
    """Of a taken batch only the events with 408, 429 or 5xx go again."""
    one = delivery(5)
    answer = [{"status": s, "error": f"e{s}"} for s in (202, 429, 400, 500, 408)]
    assert one.responded(200, {}, json.dumps(answer).encode()) is not None
    assert json.loads(one.body()) == [1, 3, 4]
    assert one.responded(200, {}, ALL_WELL) is None
    assert statuses(one) == [202, 202, 400, 202, 202]
    assert one.outcomes[2].error == "e400"


def test_attempt_that_made_progress_neither_counts_nor_lengthens_the_delay() -> None:
    """As with a server whose queue takes one event at a time."""
    one = delivery(50)

    def take_one() -> float:
        count = one.body().count(b",") + 1
        delay = one.responded(
            200, {}, json.dumps([{"status": 202}, *[BUSY] * (count - 1)]).encode()
        )
        assert delay is not None
        return delay

    for _ in range(20):
        assert take_one() <= RETRY_DELAYS[0]
    for step in range(len(RETRY_DELAYS)):
        delay = one.responded(429, {}, b"")
        assert delay is not None
        assert RETRY_DELAYS[step] / 2 <= delay <= RETRY_DELAYS[step]
        assert RETRY_DELAYS[step] / 2 <= take_one() <= RETRY_DELAYS[step]
    assert one.responded(429, {}, b"") is None
    assert statuses(one) == [202] * 32 + [429] * 18


def test_attempt_after_which_events_are_refused_for_good_is_no_progress() -> None:
    """It counts as one that failed."""
    one = delivery(20)
    for count in range(20, 20 - len(RETRY_DELAYS), -1):
        refused = [{"status": 400}, *[BUSY] * (count - 1)]
        assert one.responded(200, {}, json.dumps(refused).encode()) is not None
    assert one.responded(200, {}, json.dumps([BUSY] * 8).encode()) is None


def test_retries_end_with_the_last_status_and_body() -> None:
    """After the last retry each event has the server's last words."""
    one = delivery()
    for number in range(len(RETRY_DELAYS)):
        assert one.responded(503, {}, b"busy %d" % number) is not None
    assert one.responded(502, {}, b"gone") is None
    assert [(o.status, o.body) for o in one.outcomes] == [(502, "gone")] * 3


def test_what_a_server_said_outlives_a_connection_error() -> None:
    """A status is worth more than that the server cannot be reached later."""
    one = delivery()
    one.responded(500, {}, b"words")
    assert one.failed("ConnectionError: gone") is not None
    assert [(o.status, o.body) for o in one.outcomes] == [(500, "words")] * 3


def test_connection_errors_are_retried_and_others_are_not() -> None:
    """An error that would come again, such as a bad URL's, ends the delivery."""
    one = delivery()
    assert one.failed("ConnectionError: gone") is not None
    assert one.failed("InvalidURL: no host", is_retryable=False) is None
    assert [tuple(o) for o in one.outcomes] == [(0, "", "InvalidURL: no host")] * 3


def test_what_was_sent_without_an_answer_is_sent_once_more() -> None:
    """The server may have taken it: a third time could only be one too many."""
    one = delivery()
    one.was_sent()
    delay = one.failed("ReadTimeout: slow")
    assert delay is not None
    assert delay >= 1.0  # time for the trouble to pass: there is only one more attempt
    assert one.failed("ConnectionError: refused") is not None  # never sent
    one.was_sent()
    assert one.responded(503, {}, b"busy") is not None  # not lost
    one.was_sent()
    assert one.failed("ReadTimeout: slow") is None
    assert [(o.status, o.body) for o in one.outcomes] == [(503, "busy")] * 3
    assert one.is_over


def test_second_lost_answer_is_told_as_such() -> None:
    """The text says that the event may have arrived; nobody waiting for an answer counts too."""
    one = delivery()
    one.was_sent()
    one.interrupted()
    assert not one.is_over
    one.interrupted()  # nothing was sent meanwhile
    assert not one.is_over
    one.was_sent()
    assert one.failed("ReadTimeout: slow") is None
    assert {o.error for o in one.outcomes} == {f"{LOST_TWICE}: ReadTimeout: slow"}
    assert {o.kind() for o in one.outcomes} == {LOST_TWICE}


def test_retries_outlast_half_a_minute() -> None:
    """Whatever the jitter: a server that is away for 30 s loses nothing."""
    assert sum(RETRY_DELAYS) / 2 >= 30
    assert max(RETRY_DELAYS) < process_exit.EXIT_TIMEOUT  # one attempt more at the end of a program


def test_backoff_leaves_an_applications_random_numbers_alone() -> None:
    """A program that seeds them gets the same ones each time, whatever is sent meanwhile."""
    before = random.getstate()
    assert delivery().responded(503, {}, b"") is not None
    assert random.getstate() == before


def test_backoff_grows_and_has_jitter() -> None:
    """Delays lie between half and all of the planned ones, and differ."""
    first = set()
    for _ in range(20):
        one = delivery()
        delays = [one.failed("error") for _ in RETRY_DELAYS]
        assert all(d is not None and p / 2 <= d <= p for d, p in zip(delays, RETRY_DELAYS))
        first.add(delays[0])
    assert len(first) > 1
    assert list(RETRY_DELAYS) == sorted(RETRY_DELAYS)


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("7", 7, 7),
        ("0", 0, RETRY_DELAYS[0]),
        ("86400", MAX_RETRY_AFTER, MAX_RETRY_AFTER),
        ("9" * 500, MAX_RETRY_AFTER, MAX_RETRY_AFTER),
        pytest.param(
            formatdate(time.time() + 3600, usegmt=True),
            MAX_RETRY_AFTER,
            MAX_RETRY_AFTER,
            id="later",
        ),
        pytest.param(formatdate(time.time() - 3600, usegmt=True), 0, RETRY_DELAYS[0], id="earlier"),
        ("Wed, 99 Foo 2026", 0, RETRY_DELAYS[0]),
        ("soon", 0, RETRY_DELAYS[0]),
        ("-5", 0, RETRY_DELAYS[0]),
        ("²", 0, RETRY_DELAYS[0]),
        ("", 0, RETRY_DELAYS[0]),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_retry_after_is_obeyed_up_to_a_bound(
    value: str, least: float, most: float, whole: bool
) -> None:
    """Seconds or a date; at most 30 seconds; nonsense counts as absent."""
    one = delivery()
    status, body = (429, b"") if whole else (200, b'[{"status":429},{"status":202},{"status":202}]')
    delay = one.responded(status, {"Retry-After": value}, body)
    assert delay is not None
    assert least <= delay <= most


def test_retry_after_a_date_is_counted_from_the_servers_date() -> None:
    """Whatever the time is here."""
    headers = {
        "Date": "Mon, 01 Jan 2024 00:00:00 GMT",
        "Retry-After": "Mon, 01 Jan 2024 00:00:20 GMT",
    }
    assert delivery().responded(429, headers, b"") == 20.0


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"[]", [200, 200, 200]),
        (b'[{"status":202}]', [202, 200, 200]),
        (b'[{"status":202},null,{}]', [202, 200, 200]),
        (b'[{"status":true},{"status":"202"},{"status":0}]', [200, 200, 200]),
        (b'[{"status":202},{"status":400},{"status":403},{"status":500}]', [202, 400, 403]),
        (b"", [200] * 3),
        (b"<html>", [200] * 3),
        (b'{"status":202}', [200] * 3),
        (b"\xff\xfe", [200] * 3),
        (b"[" * 500_000, [200] * 3),
        (b"9" * 50_000, [200] * 3),
        (b'[{"status":1' + b"0" * 6000 + b"}]", [200] * 3),
    ],
)
@pytest.mark.parametrize("loads", [encoding.loads, json.loads], ids=["installed", "standard"])
def test_whatever_the_answer_each_event_has_an_outcome(
    body: bytes, expected: list[int], loads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short arrays, arrays of something else and what is no JSON leave no event without one."""
    monkeypatch.setattr("libhoney.transmission.delivery.loads", loads)
    one = delivery()
    one.responded(200, {}, body)
    assert statuses(one) == expected
    for outcome in one.outcomes:
        assert (outcome.error is None) == (outcome.status == 202)


@pytest.mark.parametrize("body", [b"[" * 500_000, b"\xff", b"[]", b'{"error":5}', b"x" * 10**6])
@pytest.mark.parametrize("loads", [encoding.loads, json.loads], ids=["installed", "standard"])
def test_whatever_a_refusals_body_it_is_kept_in_part(
    body: bytes, loads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that is no object with an error is told as text, of bounded length."""
    monkeypatch.setattr("libhoney.transmission.delivery.loads", loads)
    one = delivery()
    assert one.responded(400, {}, body) is None
    assert all(o.status == 400 and o.error and len(o.body) <= 10_000 for o in one.outcomes)


anything = st.one_of(
    st.tuples(
        st.sampled_from([200, 202, 301, 400, 401, 408, 413, 429, 500, 503]),
        st.one_of(
            st.binary(max_size=20),
            st.lists(
                st.fixed_dictionaries({"status": st.sampled_from([202, 400, 429, 500, None, "x"])}),
                max_size=5,
            ).map(lambda entries: json.dumps(entries).encode()),
        ),
    ),
    st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(anything, min_size=10, max_size=10), st.integers(1, 4))
def test_every_delivery_ends_with_an_outcome_for_each_event(course: Any, count: int) -> None:
    """Whatever comes, there are at most six attempts, never with an event that is done."""
    one = delivery(count)
    attempts = 0
    for step in course:
        assert json.loads(one.body())
        done = [n for n, o in enumerate(one.outcomes) if o.status == 202]
        assert not set(done) & set(json.loads(one.body()))
        attempts += 1
        if isinstance(step, bool):
            delay = one.failed("ConnectionError: gone", step)
        else:
            delay = one.responded(step[0], {}, step[1])
        if delay is None:
            break
    assert attempts <= 1 + len(RETRY_DELAYS)
    assert len(one.outcomes) == count
    for outcome in one.outcomes:
        assert outcome.error is not None or 200 <= outcome.status < 300
