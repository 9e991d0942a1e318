"""`asyncio.gather` of 1,000 traced coroutines: CPU of each, less that of an untraced one.

gather.py SUBJECT TIMES
"""

import asyncio
import sys
import time

from subjects import load
from typical import report

COROUTINES = 1_000
WARM_UP = 3

subject = load(sys.argv[1])


async def plain(count):
    async def work():
        await asyncio.sleep(0)

    await asyncio.gather(*(work() for _ in range(count)))


async def measure(times):
    finished = subject.discard()  # in the loop: the published Beeline looks for it
    for _ in range(WARM_UP):
        await plain(COROUTINES)
        await subject.gather(COROUTINES)
    untraced, traced = [], []
    for _ in range(times):
        started = time.process_time()
        await plain(COROUTINES)
        middle = time.process_time()
        await subject.gather(COROUTINES)
        untraced.append(middle - started)
        traced.append(time.process_time() - middle)
    expected = (times + WARM_UP) * (COROUTINES + 1)
    if finished() != expected:
        sys.exit(f"{finished()} spans of {expected} were finished")
    return (min(traced) - min(untraced)) / COROUTINES * 1e6


report(cpu_us=asyncio.run(measure(int(sys.argv[2]))))
