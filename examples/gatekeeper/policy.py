"""Sampling and scrubbing: the same rules in both services."""

import hashlib
import hmac
import os
import struct

# One in this many traces of successful requests is kept.
HEALTHY_RATE = 5

# Without the key, nobody can find the address of a digest by trying all addresses.
_DIGEST_KEY = os.environ.get("DIGEST_KEY", "").encode()


def keep_trace(trace_id, rate):
    """Return whether to keep a trace: the same for all its spans, in each service."""
    (number,) = struct.unpack(">I", hashlib.sha256(trace_id.encode()).digest()[:4])
    return number < 2**32 / rate


def sample(fields):
    """Return whether to keep a span, and the rate that it stands for: the sampler hook.

    What went wrong is always kept. An error is on each span that it passed on its way out, so what
    is kept of such a trace has no gaps, but what went well beside it may be missing.
    """
    status = fields.get("response.status_code") or 200  # most spans are not of requests
    if status == 302:
        return False, 0  # nobody asks about redirects
    errors = ("app.exception_type", "db.error", "request.error")
    went_wrong = status >= 400 or any(name in fields for name in errors)
    rate = 1 if went_wrong else HEALTHY_RATE
    return keep_trace(fields["trace.trace_id"], rate), rate


def scrub(fields):
    """Remove confidential fields: the presend hook, for spans that are kept."""
    fields.pop("app.form.password", None)
    address = fields.get("request.remote_addr")
    if address:
        # The same visitor still has the same digest.
        digest = hmac.new(_DIGEST_KEY, address.encode(), hashlib.sha256).hexdigest()
        fields["request.remote_addr"] = digest[:12]
