"""Tornado: a span for each request; events are sent by Tornado's HTTP client, without threads.

Start it: `python examples/tornado_app.py`; then `curl localhost:8000/square/12`.
"""

import asyncio
import os

import tornado.web

import beeline
import beeline.patch.tornado  # importing it installs it
from libhoney.transmission import TornadoTransmission


class SquareHandler(tornado.web.RequestHandler):
    async def get(self, number):
        with beeline.tracer("multiply"):
            beeline.add_context_field("app.number", int(number))
            await asyncio.sleep(0.01)
            self.write(f"{int(number) ** 2}\n")


async def main():
    # On the loop that the transmission uses.
    beeline.init(service_name="tornado", transmission_impl=TornadoTransmission())
    app = tornado.web.Application([(r"/square/(\d+)", SquareHandler)])
    app.listen(int(os.environ.get("PORT", "8000")))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
