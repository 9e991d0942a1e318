"""Memory of this process over the empty interpreter's: imported, initialized, an event delivered.

    memory.py URL SUBJECT IMPORTS

IMPORTS is the code with which an application imports the library. All else is imported after it.
"""

import os
import sys


def mib():
    """Return the memory of this process that is in use, in MiB; where unknown, the most it was."""
    try:
        with open("/proc/self/statm") as sizes:
            return int(sizes.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        from typical import peak_kib

        return peak_kib() / 2**10


def measure(url, name, imports):
    """Return the figures."""
    empty = mib()
    exec(imports, {})
    imported = mib() - empty

    from subjects import load

    subject = load(name)
    subject.start(url, False)
    initialized = mib() - empty

    from arrival import wait_for

    subject.traces(1, 0, iter([{"request.method": "GET", "response.status_code": 200}]))
    wait_for(subject, url, 1)
    delivered = mib() - empty
    return {"imported": imported, "initialized": initialized, "delivered": delivered}


figures = measure(*sys.argv[1:4])

from typical import end, report  # noqa: E402

report(sent=1, **figures)
end()
