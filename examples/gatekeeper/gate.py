"""A gate for some reports. The accounts service decides who may pass, and how often.

Run it with the service's address in the environment:
`PYTHONPATH=../shared ACCOUNTS_URL=http://... python gate.py`
"""

import os
from urllib.parse import urlsplit

import policy
import requests
import serving
from flask import Flask, abort, jsonify, redirect, request
from werkzeug.middleware.proxy_fix import ProxyFix

import beeline
import beeline.patch.requests
from beeline.middleware.flask import HoneyMiddleware

ACCOUNTS = os.environ["ACCOUNTS_URL"]
# The role that a path needs, by the start of the path. Other paths are open.
RULES = {"/reports/": {"member", "owner"}, "/teams/": {"owner"}}
SALES = {"spring": [120, 80, 100], "winter": []}

# The API key is in the environment: HONEYCOMB_API_KEY.
beeline.init(
    service_name="gate",
    sampler_hook=policy.sample,
    presend_hook=policy.scrub,
    # Trace fields name users: send them to no other host.
    propagate_to=[urlsplit(ACCOUNTS).hostname],
)

app = Flask(__name__)
HoneyMiddleware(app)
# Outside the Beeline, so that request.remote_addr is the visitor's and not the proxy's.
app.wsgi_app = ProxyFix(app.wsgi_app)


@app.before_request
def admit():
    """Let a request pass, or refuse it with an exception, which each span around it records."""
    roles = next((RULES[start] for start in RULES if request.path.startswith(start)), None)
    if roles is None:
        return
    with beeline.tracer("admit"):
        person = ask("/identify", key=request.headers.get("X-Api-Key", ""))
        # On all later spans, also those of the accounts service.
        beeline.add_trace_field("user", person["name"])
        beeline.add_trace_field("team", person["team"])
        with beeline.tracer("check_role"):
            beeline.add_context({"app.role": person["role"], "app.roles_allowed": sorted(roles)})
            if person["role"] not in roles:
                abort(403, "this is not for your role")
        left = ask("/visit", team=person["team"])["visits_left"]
        beeline.add_context_field("app.visits_left", left)


def ask(path, /, **question):
    """Ask the accounts service; refuse if it refuses."""
    answer = requests.post(ACCOUNTS + path, json=question, timeout=10)
    if answer.status_code in (401, 429):
        abort(answer.status_code, answer.json()["why"])
    answer.raise_for_status()
    return answer.json()


@app.post("/login")
def login():
    with beeline.tracer("login"):
        # Convenient, and a way to leak passwords: see policy.scrub.
        beeline.add_context({f"app.form.{name}": text for name, text in request.form.items()})
        return ask("/login", **request.form)


@app.get("/reports/<season>")
def report(season):
    with beeline.tracer("build_report"):
        sales = SALES[season]
        return jsonify(mean=sum(sales) / len(sales))  # fails for a season without sales


@app.get("/teams/<team>")
def show_team(team):
    return ask("/team", team=team)


@app.get("/report/<season>")
def old_report(season):
    return redirect(f"/reports/{season}", 302)


@app.after_request
def tell_trace_id(response):
    """Return the trace's id, so that a problem report can name it."""
    tracing = beeline.get_beeline()  # None if HONEYCOMB_DISABLED=true
    trace_id = tracing.tracer_impl.get_active_trace_id() if tracing else None
    if trace_id:
        response.headers["X-Trace-Id"] = trace_id
    return response


if __name__ == "__main__":
    serving.serve(app)
