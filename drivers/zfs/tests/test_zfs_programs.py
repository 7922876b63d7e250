"""Answers of channel programs and of the tool that stands in for them, as the guest gave them."""

import pytest

from cowshed_driver_zfs import programs

ID, PARENT, OTHER = (c * 32 for c in "abc")
STORE = "tank/cowshed-0"
WHOLE = ["tank/mine", f"{STORE}/active.{ID}/below"]  # clones that somebody else has made
STRANGE = [f"/{name}" for name in WHOLE]
ANSWER = "\n".join(
    [
        f"D\tcommitted.{PARENT}\t1\tnone",
        f"S\tc\t{STORE}/active.{ID}\t{STORE}/trash.{OTHER}\t" + "\t".join(WHOLE),
        "D\tempty\t-\t-",
        f"S\tc\t{STORE}/committed.{PARENT}",
        f"D\tactive.{ID}\t16777215\t{PARENT}",
        f"D\ttrash.{OTHER}\t3\t{PARENT}",
        f"D\ttemp.{OTHER}\t-\t-",
        f"S\tlive.{OTHER}",
    ]
)
LISTED = "\n".join(
    [
        f"{STORE}\t-\t-\t-",
        f"{STORE}/committed.{PARENT}\t-\t-\t-",
        f"{STORE}/committed.{PARENT}@c\t1\tnone\t{STORE}/active.{ID},{STORE}/trash.{OTHER},{','.join(WHOLE)}",
        f"{STORE}/empty\t-\t-\t-",
        f"{STORE}/empty@c\t-\t-\t{STORE}/committed.{PARENT}",
        f"{STORE}/active.{ID}\t16777215\t{PARENT}\t-",
        f"{STORE}/trash.{OTHER}\t3\t{PARENT}\t-",
        f"{STORE}/temp.{OTHER}\t-\t-\t-",
        f"{STORE}/temp.{OTHER}@live.{OTHER}\t-\t-\t",
    ]
)
WANTED = [
    programs.Object(f"active.{ID}", 16777215, PARENT, {}),
    programs.Object(f"committed.{PARENT}", 1, None, {"c": [f"active.{ID}", f"trash.{OTHER}", *STRANGE]}),
    programs.Object("empty", None, None, {"c": [f"committed.{PARENT}"]}),
    programs.Object(f"temp.{OTHER}", None, None, {f"live.{OTHER}": []}),
    programs.Object(f"trash.{OTHER}", 3, PARENT, {}),
]


def test_objects_of_the_program():
    assert programs.objects(ANSWER, STORE) == WANTED
    assert programs.objects("", STORE) == []


def test_objects_of_the_tool_are_the_same():
    assert programs.listed(LISTED, STORE) == WANTED


def test_properties_by_name():
    assert programs.properties("standard\noff", ("sync", "dedup")) == {"sync": "standard", "dedup": "off"}
    assert programs.properties("", ("sync",)) is None


def test_an_answer_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        programs.properties("standard", ("sync", "dedup"))


@pytest.mark.parametrize("text", [programs.OBJECTS, programs.PROPERTIES])
def test_programs_change_nothing(text):
    assert "zfs.sync" not in text
