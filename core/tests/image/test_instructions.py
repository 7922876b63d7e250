"""Dockerfile instructions of `commit --change`."""

import pytest

from cowshed.errors import BadUsage
from cowshed.image.instructions import change, words


def after(*lines, **own):
    change(own, lines)
    return own


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('CMD ["a", "b c"]', {"Cmd": ["a", "b c"]}),
        ("cmd echo $HOME | cat", {"Cmd": ["/bin/sh", "-c", "echo $HOME | cat"]}),
        ("CMD [ -f /x ]", {"Cmd": ["/bin/sh", "-c", "[ -f /x ]"]}),
        ('ENTRYPOINT ["/init"]', {"Entrypoint": ["/init"]}),
        ("ENV A=b", {"Env": ["A=b"]}),
        ("ENV A=b C=\"d e\" F='g \"h' I=j\\ k L=", {"Env": ["A=b", "C=d e", 'F=g "h', "I=j k", "L="]}),
        ("ENV A the rest of it", {"Env": ["A=the rest of it"]}),
        ("EXPOSE 80 443/tcp 53/udp 8000-8002", {
            "ExposedPorts": {p: {} for p in "80/tcp 443/tcp 53/udp 8000/tcp 8001/tcp 8002/tcp".split()},
        }),
        ('LABEL a="b c" d=e', {"Labels": {"a": "b c", "d": "e"}}),
        ("USER www:80", {"User": "www:80"}),
        ('VOLUME ["/a", "/b c"]', {"Volumes": {"/a": {}, "/b c": {}}}),
        ("VOLUME /a /b", {"Volumes": {"/a": {}, "/b": {}}}),
        ("WORKDIR /srv//www/../x", {"WorkingDir": "/srv/x"}),
        ("WORKDIR rel", {"WorkingDir": "/rel"}),
        ("STOPSIGNAL SIGQUIT", {"StopSignal": "SIGQUIT"}),
    ],
)  # fmt: skip
def test_each(line, wanted):
    assert after(line) == wanted


def test_what_was_there_stays_or_is_replaced_in_its_place():
    assert after("ENV B=2 C=3", Env=["A=1", "B=1"]) == {"Env": ["A=1", "B=2", "C=3"]}
    assert after("LABEL b=2", Labels={"a": "1", "b": "1"})["Labels"] == {"a": "1", "b": "2"}
    assert after("WORKDIR x", WorkingDir="/srv")["WorkingDir"] == "/srv/x"
    assert after("CMD x", Shell=["/bin/bash", "-c"])["Cmd"] == ["/bin/bash", "-c", "x"]


def test_an_entry_point_drops_the_command_that_was_meant_for_another():
    assert after('ENTRYPOINT ["e"]', Cmd=["old"]) == {"Entrypoint": ["e"]}
    assert after('CMD ["c"]', 'ENTRYPOINT ["e"]', Cmd=["old"]) == {"Entrypoint": ["e"], "Cmd": ["c"]}


@pytest.mark.parametrize(
    "line",
    [
        "", "RUN x", "CMD", "ENV", "ENV A", "ENV =b", 'ENV A="b', "EXPOSE 0", "EXPOSE 80/ip", "EXPOSE 9-8",
        "STOPSIGNAL NO", "CMD [1]", "LABEL a=b c",
    ],
)  # fmt: skip
def test_refused(line):
    with pytest.raises(BadUsage):
        after(line)


def test_words():
    assert words("  a  'b c'd \"e\\\"f\" g\\ h '' ") == ["a", "b cd", 'e"f', "g h", ""]
    assert words("") == []
