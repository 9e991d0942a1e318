"""AWS Lambda: a trace for each invocation, sent before the handler returns.

Deploy it with `lambda_handler.handler` as the handler. On this machine,
`python examples/lambda_handler.py '{"path": "/orders", "headers": {}}'` invokes it once.
"""

import json
import sys

import beeline
from beeline.middleware.awslambda import beeline_wrapper

beeline.init(service_name="lambda")


@beeline_wrapper
def handler(event, context):
    beeline.add_context_field("app.path", event.get("path"))
    with beeline.tracer("count_items"):
        items = event.get("path", "").strip("/").split("/")
        beeline.add_context_field("app.items", len(items))
    return {"statusCode": 200, "body": json.dumps(items)}


if __name__ == "__main__":
    print(json.dumps(handler(json.loads(sys.argv[1] if sys.argv[1:] else "{}"), None)))
