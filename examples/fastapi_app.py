"""FastAPI: a span for each request, and for concurrent work.

Start it: `python examples/fastapi_app.py`; then `curl localhost:8000/prices/dune`.
"""

import asyncio
import os

import uvicorn
from fastapi import BackgroundTasks, FastAPI, HTTPException

import beeline
from beeline.middleware.asgi import HoneyASGIMiddleware

beeline.init(service_name="fastapi")

app = FastAPI()
app.add_middleware(HoneyASGIMiddleware)  # added last, so outermost

PRICES = {"north": {"dune": 12, "emma": 9}, "south": {"dune": 11}}


@app.get("/prices/{book}")
async def find_price(book: str, tasks: BackgroundTasks):
    beeline.add_trace_field("book", book)
    offers = await asyncio.gather(*(ask(shop, book) for shop in PRICES))
    prices = [price for price in offers if price is not None]
    if not prices:
        raise HTTPException(404, "nobody has it")
    tasks.add_task(remember, book)
    return {"price": min(prices)}


@beeline.traced("ask")
async def ask(shop, book):
    """Ask a shop; the spans of all shops are children of the request's."""
    beeline.add_context_field("app.shop", shop)
    await asyncio.sleep(0.01)
    return PRICES[shop].get(book)


@beeline.traced("remember")
def remember(book):
    """Run after the response, in the same trace."""


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), log_level="warning")
