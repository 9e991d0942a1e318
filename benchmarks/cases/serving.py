"""What the cases of requests share.

Each is `CASE URL SUBJECT REQUESTS plain|traced|delivered SPANS`: without a tracer, with one whose
spans are counted and thrown away, or with one that sends them, so many of each request, to the URL.
A Beeline waits where its queue is full.
"""

import sys

from arrival import wait_for
from subjects import load
from typical import blocks, cpu_seconds, end, report

url, name, count, mode, spans = sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:6]
# None where nothing is traced.
subject = None if mode == "plain" else load(name)


def measure(requests, least):
    """Make requests by `requests(count)`, report what each cost, and end the process.

    `fastest_us` is of the fastest block, `mean_us` of all, with what sending takes after them.
    It is an error where a request is less than so many spans.
    """
    if mode == "plain":
        samples, _ = blocks(requests, count)
        report(fastest_us=min(samples), mean_us=sum(samples) / len(samples))
    elif mode == "traced":
        finished = subject.discard()
        samples, made = blocks(requests, count)
        if finished() < made * least:
            sys.exit(f"{finished()} spans of {made} requests were finished")
        report(fastest_us=min(samples), spans=finished() / made)
    else:
        subject.start(url, True)
        requests(count // 10)
        wait_for(subject, url, round(count // 10 * float(spans)))
        samples, made = blocks(requests, count)
        sent = round((made + count // 10) * float(spans))
        cpu = cpu_seconds()
        _, asking = wait_for(subject, url, sent)
        rest = (cpu_seconds() - cpu - asking) * 1e6
        report(mean_us=sum(samples) / len(samples) + rest / made, sent=sent)
    end()
