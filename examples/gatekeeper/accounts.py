"""The accounts behind the gate: people, their keys, and how many visits their teams have left.

Run it with a database in the environment:
`PYTHONPATH=../shared DATABASE_URL=sqlite:////tmp/accounts.db python accounts.py`
"""

import hashlib
import os
import secrets

import policy
import serving
from flask import Flask, jsonify, request
from flask_sqlalchemy import SQLAlchemy
from werkzeug.security import check_password_hash, generate_password_hash

import beeline
from beeline.middleware.flask import HoneyMiddleware

beeline.init(service_name="accounts", sampler_hook=policy.sample, presend_hook=policy.scrub)

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
HoneyMiddleware(app)  # a span for each request and, inside it, for each query
db = SQLAlchemy(app)


class Team(db.Model):
    name = db.Column(db.String(20), primary_key=True)
    visits_left = db.Column(db.Integer, nullable=False)


class Person(db.Model):
    name = db.Column(db.String(20), primary_key=True)
    password_hash = db.Column(db.String(200), nullable=False)
    role = db.Column(db.String(20), nullable=False)
    team = db.Column(db.ForeignKey(Team.name), nullable=False)


class Key(db.Model):
    # Spans of queries have the parameters. Here these are digests, which are of no use.
    digest = db.Column(db.String(64), primary_key=True)
    person = db.Column(db.ForeignKey(Person.name), nullable=False)


@app.post("/login")
def login():
    """Give a key to a person with the right password."""
    form = request.get_json()
    person = db.session.get(Person, form["name"])
    with beeline.tracer("check_password"):
        right = person and check_password_hash(person.password_hash, form["password"])
    if not right:
        return refuse(401, "no such name and password")
    key = secrets.token_urlsafe()
    db.session.add(Key(digest=digest(key), person=person.name))
    db.session.commit()
    return jsonify(key=key)


@app.post("/identify")
def identify():
    """Return the owner of a key."""
    owner = db.select(Person).join(Key).where(Key.digest == digest(request.get_json()["key"]))
    person = db.session.scalar(owner)
    if person is None:
        return refuse(401, "no such key")
    return jsonify(name=person.name, team=person.team, role=person.role)


@app.post("/visit")
def visit():
    """Take one of a team's visits."""
    team = db.session.get(Team, request.get_json()["team"])
    # In one statement, so that two visits at the same time cannot both be the last.
    taken = db.update(Team).where(Team.name == team.name, Team.visits_left > 0)
    if db.session.execute(taken.values(visits_left=Team.visits_left - 1)).rowcount == 0:
        return refuse(429, "the team has no visits left")
    db.session.commit()
    return jsonify(visits_left=team.visits_left)


@app.post("/team")
def show_team():
    people = db.select(Person.name).filter_by(team=request.get_json()["team"])
    return jsonify(people=db.session.scalars(people.order_by(Person.name)).all())


def refuse(status, why):
    beeline.add_context_field("app.refused", why)
    return jsonify(why=why), status


def digest(key):
    return hashlib.sha256(key.encode()).hexdigest()


def fill():
    """Put in two teams with the people that the environment names: `name:password:role:team`."""
    db.create_all()
    for team in os.environ.get("TEAMS", "").split():
        name, visits = team.split(":")
        db.session.add(Team(name=name, visits_left=int(visits)))
    for person in os.environ.get("PEOPLE", "").split():
        name, password, role, team = person.split(":")
        hashed = generate_password_hash(password, "pbkdf2:sha256:1000")  # for a real one: more
        db.session.add(Person(name=name, password_hash=hashed, role=role, team=team))
    db.session.commit()


if __name__ == "__main__":
    with app.app_context():
        fill()
    serving.serve(app)
