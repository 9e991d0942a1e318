"""The Lambda function that the runtime's tests run."""

from __future__ import annotations

import os
import sys
from typing import Any

import beeline
from beeline.middleware.awslambda import beeline_wrapper

# Events wait for a minute: it is the end of each invocation that sends them.
beeline.init(send_frequency=60)


@beeline_wrapper
def handler(event: Any, context: Any) -> dict[str, Any]:
    """Make a span, then do as the event says; answer with the process's id."""
    with beeline.tracer("work"):
        order = event.get("do")
        if order == "fail":
            raise ValueError("as it should")
        if order == "exit":
            sys.exit(3)
    if order == "leave open":
        beeline.start_span({"name": "left open"})
    if order == "close":
        beeline.close()
    return {"statusCode": 200, "pid": os.getpid()}
