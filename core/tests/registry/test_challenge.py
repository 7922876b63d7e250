import pytest

from cowshed.registry.challenge import Challenge, challenges


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], ()),
        (["Basic realm=x"], (Challenge("basic", {"realm": "x"}),)),
        (
            ['Bearer realm="https://a/t?x=1,2",service="s",scope="repository:a/b:pull,push"'],
            (Challenge("bearer", {"realm": "https://a/t?x=1,2", "service": "s", "scope": "repository:a/b:pull,push"}),),
        ),
        (
            ['Negotiate, Basic realm="a \\"b\\"", Bearer REALM="https://x"'],
            (
                Challenge("negotiate", {}),
                Challenge("basic", {"realm": 'a "b"'}),
                Challenge("bearer", {"realm": "https://x"}),
            ),
        ),
        (["Basic", "Bearer realm = x"], (Challenge("basic", {}), Challenge("bearer", {"realm": "x"}))),
        (['Bearer realm="unclosed'], (Challenge("bearer", {"realm": "unclosed"}),)),
        (["=,=,"], ()),
    ],
)
def test_challenges(headers, expected):
    assert challenges(headers) == expected
