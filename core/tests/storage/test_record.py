"""Records and enumerations of the boundary behave as those of the standard library, which type checkers see."""

import copy
import pickle

import pytest

from cowshed.storage import api
from cowshed.storage.record import Enum, IntEnum


class Colour(Enum):
    """A colour."""

    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 0
    HIGH = 1


def test_members_are_found_by_name_and_by_value():
    assert Colour("red") is Colour.RED
    assert Colour["BLUE"] is Colour.BLUE
    assert Colour(Colour.RED) is Colour.RED
    assert (Colour.RED.name, Colour.RED.value) == ("RED", "red")
    assert list(Colour) == [Colour.RED, Colour.BLUE]
    assert len(Colour) == 2
    with pytest.raises(ValueError, match="'green' is no Colour"):
        Colour("green")


def test_members_are_what_they_are():
    assert Colour.RED != Colour.BLUE
    assert Colour.RED != "red"
    assert {Colour.RED: 1}[Colour("red")] == 1
    assert isinstance(Colour.RED, Colour)
    assert repr(Colour.RED) == "<Colour.RED: 'red'>"
    with pytest.raises(AttributeError):
        Colour.RED.value = "green"
    assert Colour.__doc__ == "A colour."


def test_numbers_compare_as_numbers():
    assert Level.LOW < Level.HIGH <= 1
    assert max(Level) is Level.HIGH
    assert Level(1) is Level.HIGH
    assert str(Level.HIGH) == f"{Level.HIGH}" == "1"


@pytest.mark.parametrize("member", [api.Kind.ACTIVE, api.Durability.NONE, api.Durability.COMMIT, api.ChangeKind.ADDED])
def test_a_member_stays_itself_through_pickle_and_copy(member):
    assert pickle.loads(pickle.dumps(member)) is member
    assert copy.copy(member) is member
    assert copy.deepcopy(member) is member
