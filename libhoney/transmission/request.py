"""The HTTP request of a delivery's next attempt: its body and headers."""

from __future__ import annotations

from libhoney.clock import monotonic
from libhoney.internal import check_api_host, check_key
from libhoney.transmission.delivery import Attempt, Delivery
from libhoney.transmission.encoding import Compression


def make_request(
    delivery: Delivery, compression: Compression, user_agent: str
) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a delivery's next attempt, which begins now.

    Raises ValueError if its events name an invalid host or key.
    """
    to = delivery.batch.destination
    check_api_host(to.api_host)
    if check_key(to.writekey) != to.writekey:
        raise ValueError("the writekey has white space around it")
    now = monotonic()
    number = delivery.attempt.number + 1 if delivery.attempt is not None else 1
    delivery.attempt = Attempt(number, delivery.count, now)
    if delivery.started is None:
        delivery.started = now
    headers = {
        "X-Honeycomb-Team": to.writekey,
        "Content-Type": "application/json",
        "User-Agent": user_agent,
        "Accept-Encoding": "identity",  # a small response could inflate to any size
    }
    if compression.name:
        headers["Content-Encoding"] = compression.name
    return delivery.body(compression), headers
