"""Whatever the fields hold: no exception, no lost neighbor, one response, a bounded event."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Iterator
from typing import Any, Callable

import pytest
import wrapt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import beeline
import libhoney
from beeline.context import get_active, set_active
from libhoney import Client, Event
from libhoney.internal import UNENCODABLE
from tests.beeline.conftest import KEY, Application
from tests.faults import hostile
from tests.faults.hostile import MAKERS
from tests.libhoney.conftest import MakeClient
from tests.libhoney.support import all_responses, in_thread, send
from tests.receiver import MAX_EVENT, Receiver

ROOM = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def app(receiver: Receiver) -> Iterator[Application]:
    """An application that has called `beeline.init`, outside any trace."""
    set_active(None)
    application = Application(receiver)
    application.init(send_frequency=60)
    yield application
    set_active(None)


def sizes(receiver: Receiver) -> list[int]:
    """Return how many bytes of JSON each event has that arrived."""
    return [len(json.dumps(event.data).encode()) for event in receiver.events]


# libhoney


def assert_it_arrives_among_others(receiver: Receiver, client: Client, fields: Any) -> None:
    receiver.clear()
    send(client, "before", number=1)
    event = client.new_event()
    event.add(fields)
    event.add({"arrived": True})
    event.add_metadata("hostile")
    event.send()
    send(client, "after", number=2)
    assert client.flush()
    assert sorted((one["metadata"], one["status_code"]) for one in all_responses(client)) == [
        ("after", 202),
        ("before", 202),
        ("hostile", 202),
    ]
    before, between, after = (event.data for event in receiver.events)
    assert before == {"name": "before", "number": 1}
    assert after == {"name": "after", "number": 2}
    assert between["arrived"] is True
    assert len(receiver.requests) == 1
    assert max(sizes(receiver)) <= MAX_EVENT


@ROOM
@given(fields=hostile.fields)
def test_an_event_of_any_fields_arrives_among_its_neighbors(
    receiver: Receiver, fields: dict[Any, Any]
) -> None:
    """Whatever the names and values: it is repaired, and the others in its batch are as they
    were."""
    with Client(KEY, "things", api_host=receiver.url, send_frequency=60) as client:
        assert_it_arrives_among_others(receiver, client, hostile.made(fields))


@pytest.mark.parametrize("nested", [False, True], ids=["field", "nested"])
def test_each_hostile_value_is_replaced_alone(
    receiver: Receiver, make_client: MakeClient, nested: bool
) -> None:
    """One batch with each of them, as a field's value or inside one: all events arrive, and the
    field beside it is as it was."""
    client = make_client(send_frequency=60)
    wanted = sorted(MAKERS.keys() - hostile.LARGE)
    for name in wanted:
        value = MAKERS[name]()
        send(client, name, value={"in": [value, 1]} if nested else value, good=[1, {"a": "b"}])
    assert client.flush()
    assert [event.data["name"] for event in receiver.events] == wanted
    for event in receiver.events:
        assert event.data["good"] == [1, {"a": "b"}]
        value = event.data["value"]
        assert value["in"][1] == 1 if nested else "value" in event.data
    assert {one["status_code"] for one in all_responses(client)} == {202}


@pytest.mark.parametrize("name", sorted(hostile.LARGE))
def test_a_value_without_an_end_is_truncated_and_marked(
    receiver: Receiver, make_client: MakeClient, name: str
) -> None:
    """A few objects that hold one another many times over, or an iterator that never ends, make
    an event within the limits."""
    client = make_client()
    send(client, name, value=MAKERS[name](), good="kept")
    assert client.flush()
    data = receiver.one(name).data
    assert data["meta.truncated_fields"] == ["value"]
    assert data["good"] == "kept"
    assert sizes(receiver)[0] <= MAX_EVENT


def test_many_values_without_an_end_are_bounded_together(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Of each, no more is made than there is room for beside the others."""
    client = make_client()
    endless = hostile.EndlessList([1])
    send(client, "many", **{f"field{number}": endless for number in range(50)}, good="kept")
    assert client.flush()
    data = receiver.one("many").data
    assert data["good"] == "kept"
    assert len(data["meta.truncated_fields"]) == 50
    assert all(data[f"field{number}"].startswith("[0,1,2") for number in range(50))


def nested_lists(depth: int, inside: Any) -> Any:
    for _ in range(depth):
        inside = [inside]
    return inside


@pytest.mark.parametrize(
    ("make", "sent"),
    [
        (MAKERS["says it is str"], "the text of a proxy"),
        (MAKERS["says it is dict"], "the text of a proxy"),
        (MAKERS["text"], "text"),
        (MAKERS["integer"], 5),
        (MAKERS["float"], 1.5),
        (MAKERS["text of a text"], "text"),
        (MAKERS["raises MemoryError"], UNENCODABLE),
        (MAKERS["dead proxy"], UNENCODABLE),
        (MAKERS["dict"], UNENCODABLE),
        (lambda: hostile.deep(105), nested_lists(99, ["[...]"])),
        (lambda: hostile.deep(99), nested_lists(99, [])),
        (lambda: wrapt.ObjectProxy("text"), "text"),
        (lambda: wrapt.ObjectProxy({"a": [wrapt.ObjectProxy([1])]}), {"a": [[1]]}),
        (lambda: [MAKERS["hostile class itself"](), {"a": 1}], [UNENCODABLE, {"a": 1}]),
        (MAKERS["circular list"], [1, "[...]"]),
        (MAKERS["circular dict"], {"a": 1, "self": ["{...}"]}),
        (lambda: 2**1023 - 1, 2**1023 - 1),
        (lambda: 10**309, str(10**309)),
        (lambda: [-(10**309)], [str(-(10**309))]),
        (lambda: 10**20_000, UNENCODABLE),
        (lambda: {1: "a", "1": "b"}, {"1": "b"}),
        (lambda: {"": {"": 1}}, {"": {"": 1}}),
        (lambda: {hostile.RaisingName("key"): 1}, {"key": 1}),
        (lambda: {"a": {1}, "b": [1, 2]}, {"a": "{1}", "b": [1, 2]}),
    ],
)
def test_what_is_sent_in_place_of_a_value(
    receiver: Receiver, make_client: MakeClient, make: Callable[[], Any], sent: Any
) -> None:
    """Its own content where there is any, else its text, else a note. A number that no server's
    float holds goes as its text: one that cannot be decoded would take the batch along. Of two
    names with the same text, the last holds."""
    client = make_client()
    send(client, "event", value=make())
    assert client.flush()
    assert receiver.one("event").data["value"] == sent


def test_a_generator_is_not_consumed(receiver: Receiver, make_client: MakeClient) -> None:
    """It belongs to the application: its text is sent, its items are still there."""
    client = make_client()
    items = iter([1, 2])
    numbers = (item for item in items)
    send(client, "event", value=numbers, inside=[numbers], items=items)
    assert client.flush()
    assert receiver.one("event").data["value"].startswith("<generator object")
    assert list(numbers) == [1, 2]


@pytest.mark.parametrize("attribute", ["created_at", "sample_rate", "metadata"])
def test_an_events_own_attributes_may_be_anything(
    receiver: Receiver, make_client: MakeClient, attribute: str
) -> None:
    """Time, rate and metadata that make no sense are replaced; the event arrives, and `send`,
    which samples, does not raise."""
    client = make_client(send_frequency=60)
    for name in sorted(MAKERS.keys() - hostile.LARGE):
        for verb in ("send_presampled", "send"):
            event = client.new_event({"name": name})
            setattr(event, attribute, MAKERS[name]())
            getattr(event, verb)()
        assert client.flush()
        kinds = [one["error"] or one["status_code"] for one in all_responses(client)]
        assert len(kinds) == 2, name
        assert 202 in kinds, name
        assert set(kinds) <= {202, "event dropped due to sampling"}, name
    assert all(1 <= event.samplerate < 2**31 for event in receiver.events)


@pytest.mark.parametrize("rate", [2**31, 10**30, float("inf"), "9" * 100, -(10**30)])
def test_a_rate_is_one_that_every_server_reads(
    receiver: Receiver, make_client: MakeClient, rate: Any
) -> None:
    """A number beyond 32 bits could make a server refuse the batch: it is brought within."""
    client = make_client(send_frequency=60)
    send(client, "before")
    event = client.new_event({"name": "event"})
    event.sample_rate = rate
    event.send_presampled()
    assert client.flush()
    assert 1 <= receiver.one("event").samplerate < 2**31


@pytest.mark.parametrize(
    "name", ["has no class", "says it is int", "raises ValueError", "text", "set", "generator"]
)
def test_what_is_no_mapping_is_a_type_error(make_client: MakeClient, name: str) -> None:
    """As documented, and no other exception, whatever the object does when it is looked at."""
    client = make_client()
    data = MAKERS[name]()
    for call in (
        *(client.add, client.send_now, client.new_event, client.new_builder),
        *(client.new_event().add, client.new_builder().add, client.new_builder().send_now),
    ):
        with pytest.raises(TypeError):
            call(data)


def test_a_mapping_that_cannot_be_read_is_omitted(
    receiver: Receiver, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Everywhere in the libhoney API: no exception, a warning, and the other fields arrive."""
    client = make_client()
    broken = hostile.HostileMapping()
    client.add_field("common", 1)
    client.add(broken)
    builder = client.new_builder(broken)
    builder.add(broken)
    builder.send_now(broken)
    builder.clone().send_now({"cloned": True})
    event = client.new_event(broken)
    event.add(broken)
    event.send()
    client.send_now(broken)
    assert client.flush()
    assert [event.data for event in receiver.events] == [
        *({"common": 1}, {"common": 1, "cloned": True}, {"common": 1}, {"common": 1})
    ]
    assert len(caplog.records) == 1


def test_a_name_without_a_hash_is_omitted(
    receiver: Receiver, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """`add_field` takes any name that there is; of the others a warning is left."""
    client = make_client()
    name: Any
    for name in ([], {}, hostile.Raising()):
        client.add_field(name, 1)
        client.new_builder().add_field(name, 1)
        event = client.new_event({"name": "event"})
        event.add_field(name, 1)
    event.send()
    assert client.flush()
    assert receiver.one("event").data == {"name": "event"}
    assert len(caplog.records) == 1


def test_dynamic_fields_may_do_anything(
    receiver: Receiver, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """One that raises, has no usable name, no hash or a hostile result leaves at most its own
    field out."""
    client = make_client(send_frequency=60)

    class Function:
        def __init__(self, name: Any, result: Any) -> None:
            self.__name__ = name
            self._result = result

        def __call__(self) -> Any:
            if issubclass(type(self._result), Exception):
                raise self._result
            return self._result

    class WithoutHash(Function):
        __hash__ = None  # type: ignore[assignment]

    class WithoutName:
        def __call__(self) -> int:
            return 1

        def __getattr__(self, name: str) -> Any:
            raise ZeroDivisionError(name)

    for function in (
        *(Function("raises", MemoryError()), Function(["no hash"], 1), Function("fine", 1)),
        *(Function(hostile.Raising(), 2), Function("hostile", hostile.Raising()), WithoutName()),
        *(WithoutHash("without", 3), Function("deep", RecursionError())),
    ):
        client.add_dynamic_field(function)
    for number in range(3):
        client.send_now({"name": number})
    assert client.flush()
    assert [event.data["name"] for event in receiver.events] == [0, 1, 2]
    for event in receiver.events:
        assert event.data["fine"] == 1
        assert event.data["hostile"] == UNENCODABLE
        assert "raises" not in event.data


def test_dynamic_fields_that_make_events_terminate(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Events made by a dynamic field have no dynamic fields: two such would never end."""
    client = make_client(send_frequency=60)

    def one() -> str:
        client.send_now({"name": "made by one"})
        return "one"

    def two() -> str:
        client.send_now({"name": "made by two"})
        return "two"

    client.add_dynamic_field(one)
    client.add_dynamic_field(two)
    client.send_now({"name": "event"})
    client.send_now({"name": "next"})
    assert client.flush()
    for name in ("event", "next"):
        data = receiver.one(name).data
        assert (data["one"], data["two"]) == ("one", "two")
    assert len(receiver.events) == 6


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_a_program_goes_on(
    receiver: Receiver, make_client: MakeClient, raised: type[BaseException]
) -> None:
    """A value whose text raises such is the application's business; what was sent before and is
    sent after it arrives."""
    client = make_client(send_frequency=60)
    send(client, "before")
    with pytest.raises(raised):
        send(client, "event", value=[hostile.Raising(raised)])
    send(client, "after")
    assert client.flush()
    assert [event.data["name"] for event in receiver.events] == ["before", "after"]


# Blocking and changing values


class Blocking:
    """A value whose text is long in coming."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.released = threading.Event()

    def __str__(self) -> str:
        self.asked.set()
        assert self.released.wait(60)
        return "at last"


def test_a_text_that_is_slow_blocks_no_other_thread(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """It is made in the thread that sends the event, which has to wait; no lock is held, so that
    other threads send, flush and read `stats` meanwhile."""
    client = make_client(send_frequency=60)
    value = Blocking()
    slow = in_thread(lambda: send(client, "slow", value=value))
    try:
        assert value.asked.wait(60)
        for number in range(5):
            send(client, number)
        assert client.flush()
        assert [event.data["name"] for event in receiver.events] == list(range(5))
        assert client.xmit.stats["sent"] == 5
    finally:
        value.released.set()
    slow.join(60)
    assert client.flush()
    assert receiver.one("slow").data["value"] == "at last"


def test_a_spans_value_that_is_slow_blocks_no_other_thread(app: Application) -> None:
    """The same with spans, trace fields and rollups."""
    value = Blocking()

    def work() -> None:
        with beeline.tracer("slow"):
            beeline.add_trace_field("value", value)

    slow = in_thread(work)
    try:
        assert value.asked.wait(60)
        with beeline.tracer("quick"):
            beeline.add_trace_field("a", 1)
            beeline.add_rollup_field("n", 1)
        assert app.names() == ["quick"]
    finally:
        value.released.set()
    slow.join(60)
    assert app.one("slow")["app.value"] == "at last"


def test_dicts_and_lists_that_other_threads_change(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """Fields, nested dicts and lists that change all the time never break an event: each arrives,
    and what does not change is in it."""
    client = make_client(send_frequency=60)
    nested: dict[str, Any] = {"steady": 1}
    deeper: dict[Any, Any] = {"nested": nested}
    items: list[Any] = [1]
    event = client.new_event({"name": "event", "nested": nested, "deep": deeper, "items": items})
    ended = threading.Event()

    def change() -> None:
        number = 0
        while not ended.is_set():
            number = (number + 1) % 50
            value = [number, {"a"}, hostile.Raising(), 2**70, "\ud800"][number % 5]
            for target in (nested, deeper, event.fields()):
                target[f"extra{number}"] = value
                target[number] = value
            items.append(value)
            for target in (nested, deeper, event.fields()):
                target.pop(f"extra{(number + 25) % 50}", None)
                target.pop((number + 25) % 50, None)
            if number == 0:
                items.clear()

    threads = [in_thread(change) for _ in range(2)]
    try:
        for _ in range(200):
            event.send()
            str(event)
    finally:
        ended.set()
        for thread in threads:
            thread.join(60)
    assert client.flush()
    assert {one["status_code"] for one in all_responses(client)} == {202}
    assert len(receiver.events) == 200
    for arrived in receiver.events:
        assert arrived.data["nested"]["steady"] == 1
        assert arrived.data["deep"]["nested"]["steady"] == 1


# Objects of other libraries


def test_dicts_that_a_collection_of_garbage_changes(
    receiver: Receiver, make_client: MakeClient
) -> None:
    """A collection may run while an event is encoded, and others may run in it: what they change
    costs no field."""
    nested = {str(number): [[number]] for number in range(1_000)}
    client = make_client()
    event = client.new_event({"name": "event", "nested": nested, "set": {1}})
    changed = 0

    def change(*_: object) -> None:
        nonlocal changed
        changed += 1
        nested[f"extra{changed}"] = [[changed]]
        event.fields()[f"extra{changed}"] = changed

    threshold = gc.get_threshold()
    gc.callbacks.append(change)
    gc.set_threshold(10)
    try:
        event.send()
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(change)
    assert changed
    assert client.flush()
    (arrived,) = receiver.events
    assert arrived.data["nested"]["999"] == [[999]]
    assert arrived.data["set"] == "{1}"


def test_detached_objects_of_sqlalchemy(receiver: Receiver, make_client: MakeClient) -> None:
    """An object whose attributes raise outside its session is sent as its text, or as a note."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    orm = pytest.importorskip("sqlalchemy.orm")
    base = orm.declarative_base()

    class User(base):  # type: ignore[misc, valid-type]
        __tablename__ = "users"
        id = sqlalchemy.Column(sqlalchemy.Integer, primary_key=True)
        name = sqlalchemy.Column(sqlalchemy.String)

        def __str__(self) -> str:
            return str(self.name)

    engine = sqlalchemy.create_engine("sqlite://")
    base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        user = User(id=1, name="Ada")
        session.add(user)
        session.commit()  # which expires it
        query = session.query(User)
    with pytest.raises(orm.exc.DetachedInstanceError):
        str(user)
    client = make_client()
    send(client, "event", user=user, users=[user], column=User.name, query=query)
    assert client.flush()
    data = receiver.one("event").data
    assert data["user"] == UNENCODABLE
    assert data["users"] == [UNENCODABLE]
    assert data["column"] == "User.name"
    engine.dispose()


def test_lazy_objects_of_django(receiver: Receiver, make_client: MakeClient) -> None:
    """One whose function raises, as where a session is read without a database, is sent as a note;
    one that works as the text of what it stands for."""
    functional = pytest.importorskip("django.utils.functional")

    def fails() -> Any:
        raise ConnectionError("no database")

    client = make_client()
    send(
        client,
        "event",
        user=functional.SimpleLazyObject(fails),
        users=[functional.SimpleLazyObject(fails)],
        who=functional.SimpleLazyObject(lambda: "Ada"),
        text=functional.lazystr("lazy"),
    )
    assert client.flush()
    data = receiver.one("event").data
    assert (data["user"], data["users"]) == (UNENCODABLE, [UNENCODABLE])
    assert (data["who"], data["text"]) == ("Ada", "lazy")


def test_numbers_of_numpy(receiver: Receiver, make_client: MakeClient) -> None:
    """Those that are Python's own are numbers; the others are sent as their text."""
    numpy = pytest.importorskip("numpy")
    client = make_client()
    values = {"float": numpy.float64(1.5), "int": numpy.int64(5), "array": numpy.array([1, 2])}
    send(client, "event", **values, none=numpy.float64("nan"), text=numpy.str_("text"))
    assert client.flush()
    expected = {"float": 1.5, "int": "5", "array": "[1 2]", "none": None, "text": "text"}
    assert receiver.one("event").data == {"name": "event", **expected}


# Beeline


@ROOM
@given(fields=hostile.fields, late=hostile.values, name=hostile.names)
def test_a_trace_of_any_fields_arrives_whole(
    receiver: Receiver, fields: dict[Any, Any], late: Any, name: Any
) -> None:
    """Whatever is given to the functions of `beeline`: none raises, all spans of the trace arrive,
    and no span stays open."""
    fields, late, name = map(hostile.made, (fields, late, name))
    receiver.clear()
    set_active(None)
    application = Application(receiver)
    application.init(send_frequency=60)
    try:
        with beeline.tracer("root"):
            beeline.add_context(fields)
            with beeline.tracer(name):
                beeline.add_context_field(name, late)
                beeline.add_context(late)
                beeline.add_trace_field(name, late)
                beeline.add_rollup_field(name, late)
                beeline.add_rollup_field("rolled", late)
                beeline.http_trace_propagation_hook()
                beeline.marshal_trace_context()
                span = beeline.start_span(late)
                beeline.finish_span(span)
            with beeline.tracer("neighbor"):
                beeline.add_context_field("number", 1)
            beeline.remove_trace_field(name)
            beeline.remove_context_field(name)
        beeline.send_now(fields)
        beeline.send_now(late)
        assert get_active() is None
        assert beeline.flush()
        responses = beeline.get_responses_queue()
        assert responses is not None
        statuses = [responses.get_nowait()["status_code"] for _ in range(6)]
        assert statuses == [202] * 6
        assert responses.empty()
        assert len(receiver.events) == 6
        assert receiver.one("neighbor").data["number"] == 1
        assert max(sizes(receiver)) <= MAX_EVENT
    finally:
        beeline.close()


@pytest.mark.parametrize(
    "call",
    [
        *(lambda v: beeline.add_context(v), lambda v: beeline.add_context_field(v, v)),
        *(lambda v: beeline.add_trace_field(v, v), lambda v: beeline.add_rollup_field(v, v)),
        *(lambda v: beeline.add_rollup_field("n", v), lambda v: beeline.remove_trace_field(v)),
        *(lambda v: beeline.remove_context_field(v), lambda v: beeline.send_now(v)),
        *(lambda v: beeline.add(v), lambda v: beeline.add_field(v, v)),
        lambda v: beeline.finish_span(beeline.start_span(v)),
    ],
)
def test_each_function_takes_each_value(app: Application, call: Callable[[Any], Any]) -> None:
    """None raises, and the span that they are called in arrives."""
    for number, name in enumerate(sorted(MAKERS.keys() - hostile.LARGE)):
        with beeline.tracer(number):  # type: ignore[arg-type]
            call(MAKERS[name]())
    assert get_active() is None
    names = [name for name in app.names() if isinstance(name, int)]
    assert names == list(range(len(MAKERS) - len(hostile.LARGE)))


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_program_leaves_no_span_open(
    app: Application, raised: type[BaseException]
) -> None:
    """A value that raises such when its span is sent: it is re-raised, and the spans around it are
    sent."""
    with beeline.tracer("root"):
        with pytest.raises(raised):
            with beeline.tracer("child"):
                beeline.add_context_field("value", hostile.Raising(raised))
        with beeline.tracer("next"):
            pass
    assert get_active() is None
    assert sorted(app.names()) == ["next", "root"]
    assert app.parent_of("next") == "root"


def test_traced_functions_are_not_touched_by_what_they_take_and_return(app: Application) -> None:
    """Arguments, results and exceptions of any kind pass through `@traced` as they are."""

    class Odd(Exception):
        __str__ = __repr__ = hostile.Raising._raise  # type: ignore[assignment]

    @beeline.traced("traced")
    def same(value: Any) -> Any:
        if type(value) is Odd:
            raise value
        return value

    for name in sorted(MAKERS.keys() - hostile.LARGE):
        value = MAKERS[name]()
        returned = same(value)
        if returned is not value:  # an assertion would look at it
            pytest.fail(name)
    error = Odd()
    with pytest.raises(Odd) as raised:
        same(error)
    assert raised.value is error
    assert set(app.names()) == {"traced"}


@settings(max_examples=50, deadline=None)
@given(fields=hostile.fields, more=st.lists(hostile.values, max_size=3))
def test_the_text_of_an_event_is_json(fields: dict[Any, Any], more: list[Any]) -> None:
    """`str()` of events and field holders never raises for values."""
    fields, more = hostile.made(fields), hostile.made(more)
    event = Event()
    event.add(fields)
    event.add_field("more", more)
    json.loads(str(event))
    holder = libhoney.FieldHolder()
    holder.add(fields)
    json.loads(str(holder))
