"""Events of pages: who hears of what, how often, and until when."""

import http.client
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path

from tests.helpers.consoles import Client, RunningConsole, served, stand_in_parts
from tests.helpers.waiting import eventually


@contextmanager
def stream(client: Client) -> Iterator[http.client.HTTPResponse]:
    connection = client.connection()
    connection.request("GET", "/events", None, client.headers(Accept="text/event-stream"))
    response = connection.getresponse()
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.readline() == b"retry: 2000\n"
    yield response
    connection.close()


def events(response: http.client.HTTPResponse) -> Iterator[tuple[str, object]]:
    """Yield events until the stream ends."""
    name = ""
    for line in response:
        if line.startswith(b"event: "):
            name = line[7:].strip().decode()
        elif line.startswith(b"data: "):
            yield name, json.loads(line[6:])


def cases(response: http.client.HTTPResponse, count: int) -> list[list[str]]:
    """Return the messages of changed cases until there are so many cases."""
    found: list[list[str]] = []
    for name, data in events(response):
        if name == "cases":
            assert isinstance(data, list)
            found.append(data)
        if sum(map(len, found)) >= count:
            break
    return found


def listening(console: RunningConsole) -> int:
    return len(console.parts.changes._listeners)


def test_ten_pages_hear_of_every_change(console: RunningConsole) -> None:
    client = console.signed_in("analyst")
    eventually(lambda: listening(console) == 0)
    with ExitStack() as stack:
        streams = [stack.enter_context(stream(client)) for _ in range(10)]
        eventually(lambda: listening(console) == 10)
        for number in range(100):
            console.parts.changes.publish([f"case {number}\n\ndata: <b>"])
        for response in streams:
            messages = cases(response, 100)
            assert sorted(chain.from_iterable(messages)) == sorted(f"case {n}\n\ndata: <b>" for n in range(100))
            assert len(messages) < 5
        assert client.get("/").status == 200
    eventually(lambda: listening(console) == 0)


def test_a_slow_page_loses_nothing(console: RunningConsole) -> None:
    client = console.signed_in("analyst")
    with stream(client) as response:
        eventually(lambda: listening(console) == 1)
        wanted = {f"case-{number:06d}-{'x' * 200}" for number in range(20_000)}
        for case_id in wanted:
            console.parts.changes.publish([case_id])
        messages = cases(response, len(wanted))
    assert set(chain.from_iterable(messages)) == wanted
    assert sum(map(len, messages)) == len(wanted)
    assert max(map(len, messages)) <= 1_000


def test_an_operator_hears_of_no_case(console: RunningConsole) -> None:
    with stream(console.signed_in("operator")) as response:
        eventually(lambda: listening(console) == 1)
        console.parts.changes.publish(["case"])
        heard = events(response)
        assert [next(heard) for _ in range(3)] == [("status", {})] * 3


def test_the_stream_ends_with_its_session(console: RunningConsole) -> None:
    client = console.signed_in("analyst")
    with stream(client) as response:
        heard = events(response)
        assert next(heard) == ("status", {})
        assert client.post("/logout").status == 303
        assert {name for name, _ in heard} <= {"status"}


def test_a_worker_of_another_name_than_its_page_hears_and_ends_no_session(console: RunningConsole) -> None:
    client = console.signed_in("analyst")
    worker = console.client("a worker of the same browser")
    worker.cookies = client.cookies
    with stream(worker) as response:
        heard = events(response)
        assert [next(heard) for _ in range(2)] == [("status", {})] * 2
    assert client.get("/account").status == 200


def test_the_stream_ends_with_the_server(tmp_path: Path) -> None:
    with served(stand_in_parts(tmp_path)) as other:
        client = other.client()
        assert client.post(f"/link/{other.accounts.link('analyst', 'ana')}").status == 303
        connection = client.connection()
        connection.request("GET", "/events", None, client.headers())
        response = connection.getresponse()
        assert next(events(response)) == ("status", {})
    assert {name for name, _ in events(response)} <= {"status"}
    connection.close()
