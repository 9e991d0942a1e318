"""What the cases share: settings, fields, CPU time and memory."""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time

WRITEKEY = "benchmarkbenchmark0000"
SERVICE = "benchmark"

FIVE = {
    "app.user": 4711,
    "app.plan": "team",
    "app.ratio": 0.25,
    "app.hit": True,
    "app.hint": "first visit",
}


def _eleven(number):
    return {
        "type": "http_client",
        "request.method": "GET",
        "request.host": "inventory.internal.example.com",
        "request.path": f"/v2/warehouses/{number % 17}/articles/{number * 7919}/availability",
        "request.route": "/v2/warehouses/<int:warehouse>/articles/<int:article>/availability",
        "request.content_length": 0,
        "response.status_code": 404 if number % 20 == 0 else 200,
        "response.content_length": number * 104729 % 65521,
        "app.user_id": number * 15485863 % 9999991,
        "app.cache_hit": number % 3 == 0,
        "app.feature_flags": "new-checkout,fast-search,beta",
    }


# A span has nine fields of its own: with eleven more it has 20, and about 750 bytes of JSON.
ELEVEN = [_eleven(number) for number in range(1, 500)]

# The same as a whole event, without a tracer.
TWENTY = [
    {
        "service_name": SERVICE,
        "service.name": SERVICE,
        "meta.beeline_version": "4.0.0",
        "meta.local_hostname": "web-7f9c",
        "name": "child",
        "trace.trace_id": f"{number * 0x9E3779B97F4A7C15F39CC0605CEDC834:032x}"[-32:],
        "trace.parent_id": f"{number * 0x9E3779B97F4A7C15:016x}"[-16:],
        "trace.span_id": f"{number * 0xC2B2AE3D27D4EB4F:016x}"[-16:],
        "duration_ms": number * 0.01171875,
        **fields,
    }
    for number, fields in enumerate(ELEVEN, 1)
]


def cpu_seconds():
    """Return the CPU time of this process: all threads, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_kib():
    """Return the most memory that this process has had, in KiB."""
    try:
        with open("/proc/self/status") as status:
            # Not the resource module's: on Linux that starts with the parent's.
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def microseconds_a_call(function, count):
    """Return the CPU time of `function(count)` divided by `count`, and how many were made.

    Of the blocks the fastest counts, since what else the machine does only adds to it.
    """
    samples, made = blocks(function, count)
    return min(samples), made


def blocks(function, count, number=15):
    """Return the same of each of so many blocks, and how many were made.

    One block that is not measured comes first, a tenth as large.
    """
    made = max(1, count // 10)
    function(made)
    samples = []
    for _ in range(number):
        gc.collect()
        started = time.process_time()
        function(count)
        samples.append((time.process_time() - started) / count * 1e6)
        made += count
    return samples, made


def report(**figures):
    """Print the case's result for the driver."""
    print(json.dumps(figures))


def end():
    """End without exit handlers: the published Beeline's take ten seconds."""
    sys.stdout.flush()
    os._exit(0)
