"""The client of ttrpc, against a server that answers as the protocol allows and as it does not."""

import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowshed.runtimes import ttrpc
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.protobuf import decode, encode

MESSAGES = st.dictionaries(
    st.integers(1, 200), st.one_of(st.integers(1, 2**64 - 1), st.binary(min_size=1), st.lists(st.binary(), min_size=1))
)


@given(MESSAGES)
def test_what_is_encoded_is_decoded(message):
    lists = {number: value if isinstance(value, list) else [value] for number, value in message.items()}
    assert decode(encode(message)) == lists


@given(st.binary())
def test_bytes_of_a_stranger_are_a_message_or_refused(data):
    try:
        decode(data)
    except ValueError:
        return


def test_known_bytes():
    """The examples of protobuf's own page on its encoding, nothing for what is empty, and what is none."""
    assert encode({1: 150}) == bytes.fromhex("089601")
    assert encode({2: "testing", 3: 0, 4: ""}) == b"\x12\x07testing"
    assert decode(b"\x0d\x01\x00\x00\x00\x11\x02\x00\x00\x00\x00\x00\x00\x00") == {1: [1], 2: [2]}
    for broken in (b"\x0a\x05abc", b"\x08", b"\x08" + b"\xff" * 11, b"\x0b", b"\x0d\x01"):
        with pytest.raises(ValueError, match="no protobuf message"):
            decode(broken)


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    client = ttrpc.Client(ours, "a.Service")
    yield client, theirs
    client.close()
    theirs.close()


def request(server):
    head = server.recv(10, socket.MSG_WAITALL)
    length, stream, kind, _ = struct.unpack(">IIBB", head)
    assert kind == 1
    return stream, decode(server.recv(length, socket.MSG_WAITALL))


def answer(server, stream, body=b"", status=b""):
    response = encode({1: status, 2: body})
    server.sendall(struct.pack(">IIBB", len(response), stream, 2, 0) + response)


def test_a_call_and_answers_in_another_order(ends):
    client, server = ends
    first, second = client.send("Wait", {1: "id"}), client.send("Pids", {1: "id"})
    assert (first, second) == (1, 3)
    stream, asked = request(server)
    assert (stream, asked) == (1, {1: [b"a.Service"], 2: [b"Wait"], 3: [encode({1: "id"})]})
    request(server)
    answer(server, second, encode({1: 7}))
    assert client.receive(second) == {1: [7]}
    assert client.arrived(first) is None
    answer(server, first)
    client.read()
    assert client.arrived(first) == {}


def test_an_answer_that_comes_in_pieces(ends):
    client, server = ends
    body = encode({2: encode({1: "x" * 100000})})
    data = struct.pack(">IIBB", len(body), 1, 2, 0) + body

    def serve():
        request(server)
        for at in range(0, len(data), 777):
            server.sendall(data[at : at + 777])

    thread = threading.Thread(target=serve)
    thread.start()
    assert client.call("State", {}) == {1: [b"x" * 100000]}
    thread.join()


def test_a_refusal_and_a_server_that_goes_or_speaks_something_else(ends):
    client, server = ends
    stream = client.send("Start", {})
    answer(server, stream, status=encode({1: 5, 2: "no such task"}))
    with pytest.raises(ttrpc.Refused, match="no such task"):
        client.receive(stream)
    server.sendall(b"HTTP/1.1 400 Bad Request\r\n")
    with pytest.raises(LaunchError, match="does not speak ttrpc"):
        client.receive(client.send("Start", {}))
    server.shutdown(socket.SHUT_RDWR)
    with pytest.raises(LaunchError, match="is gone"):
        client.call("Start", {})


def test_every_event_is_answered():
    whole = struct.pack(">IIBB", 4, 1, 1, 0) + b"abcd" + struct.pack(">IIBB", 2, 3, 1, 0) + b"ef"
    answers, rest = ttrpc.answer_all(whole + b"\x00\x00")
    assert [struct.unpack(">IIBB", answers[at : at + 10])[1:3] for at in (0, 10)] == [(1, 2), (3, 2)]
    assert rest == b"\x00\x00"
    assert ttrpc.answer_all(whole[:5]) == (b"", whole[:5])


def test_addresses(tmp_path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        folder = tmp_path / "s"
        folder.symlink_to(deep)
        server.bind(f"{folder}/x")
        server.listen()
        ttrpc.connect(f"unix://{deep}/x").close()
    with pytest.raises(LaunchError, match="No such file"):
        ttrpc.connect(f"unix://{deep}/none")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{tmp_path.name}-{id(server)}")
        server.listen()
        ttrpc.connect(f"unix://@{tmp_path.name}-{id(server)}").close()
