"""`zfs diff`: what it printed, read; what it leaves out, found."""

import os

import pytest

from cowshed.storage.errors import ToolFailed
from cowshed_driver_zfs import diff

# recorded: Linux 6.1, OpenZFS 2.1.11, `zfs diff -FH` of a clone mounted at /m2, against its origin
RECORDED = rb"""M	/	/m2/root
-	F	/m2/root/a
R	/	/m2/root/d	/m2/root/dd
M	F	/m2/root/l	(+1)
-	/	/m2/root/a/<xattrdir>
-	F	/m2/root/a/<xattrdir>/trusted.big
+	F	/m2/root/new\0040name
+	F	/m2/root/non\0377\0303utf\0012\0134x\0011
+	/	/m2/root/new\0040name/<xattrdir>
+	F	/m2/root/new\0040name/<xattrdir>/user.big
+	F	/m2(on_delete_queue)
M	/	/m2/
"""


def test_each_line_is_one_object():
    found = [(line.kind, line.directory, line.path, line.to) for line in diff.lines(RECORDED, b"/m2")]
    assert found == [
        (b"M", True, b"", None),
        (b"-", False, b"a", None),
        (b"R", True, b"d", b"dd"),
        (b"M", False, b"l", None),
        (b"-", True, b"a/<xattrdir>", None),
        (b"-", False, b"a/<xattrdir>/trusted.big", None),
        (b"+", False, b"new name", None),
        (b"+", False, b"non\xff\xc3utf\n\\x\t", None),
        (b"+", True, b"new name/<xattrdir>", None),
        (b"+", False, b"new name/<xattrdir>/user.big", None),
        (b"+", False, None, None),
        (b"M", True, None, None),
    ]


def test_candidates_are_both_names_and_owners_of_hidden_attributes():
    found = diff.candidates(diff.lines(RECORDED, b"/m2"))
    assert found.directories == {b""}
    assert found.paths[b"d"] is False
    assert found.paths[b"dd"] is True, "what a renamed directory holds is not looked at"
    assert {b"a", b"l", b"new name", b"non\xff\xc3utf\n\\x\t"} <= found.paths.keys()


def test_a_mount_point_with_blanks_is_taken_off():
    output = rb"M	F	/s/1\0040moved/active/root/x"
    assert [line.path for line in diff.lines(output, b"/s/1 moved/active")] == [b"x"]


@pytest.mark.parametrize(
    "output", [b"?\tF\t/m2/root/a\n", b"M\n", b"M\tF\n", b"R\t/\t/m2/root/a\n", b"rubbish", b"M\tF\ta\tb\tc\td", b"\t"]
)
def test_what_the_tool_does_not_print_is_an_error_in_one_line(output):
    with pytest.raises(ToolFailed) as raised:
        list(diff.lines(output, b"/m2"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("word", "path"),
    [
        (rb"\0040", b" "),
        (rb"\0377", b"\xff"),
        (rb"\0134\0040", b"\\ "),
        (rb"\00401", b" 1"),
        (rb"a\0012b", b"a\nb"),
        (b"plain", b"plain"),
    ],
)
def test_escapes_are_four_octal_digits(word, path):
    assert diff.decoded(word) == path


# ---------------------------------------------------------------- two trees that share their inodes, as clones do


@pytest.fixture
def trees(tmp_path):
    """lower and upper, and a way to open both: files are hard links of each other, so their numbers agree."""
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    lower.mkdir()
    upper.mkdir()
    fds = [os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (lower, upper)]
    yield lower, upper, fds
    for fd in fds:
        os.close(fd)


def completed(fds, paths, directories=()):
    named = diff.Candidates(dict.fromkeys(paths, False), set(directories))
    return {change.path: change.subtree for change in diff.completed(named, *fds)}


def test_both_sides_of_a_directory_tell_names_that_came_went_and_lead_elsewhere(trees):
    lower, upper, fds = trees
    for name in ("same", "gone", "other"):
        (lower / name).write_text(name)
    os.link(lower / "same", upper / "same")
    (upper / "other").write_text("another file")
    (upper / "new").write_text("new")
    assert completed(fds, [b""], [b""]) == {b"": False, b"gone": True, b"other": True, b"new": True}


def test_a_directory_that_is_missing_on_one_side_is_all_names_of_the_other(trees):
    lower, upper, fds = trees
    (lower / "d").mkdir()
    (lower / "d" / "a").write_text("a")
    (upper / "d").symlink_to("/")
    assert completed(fds, [b"d"], [b"d"]) == {b"d": False, b"d/a": True}


def test_other_names_of_a_changed_file_are_found_wherever_they_are(trees):
    _, upper, fds = trees
    (upper / "deep" / "er").mkdir(parents=True)
    (upper / "a").write_text("a")
    os.link(upper / "a", upper / "deep" / "b")
    os.link(upper / "a", upper / "deep" / "er" / "c")
    (upper / "deep" / "stranger").write_text("x")
    assert completed(fds, [b"a"]) == {b"a": False, b"deep/b": False, b"deep/er/c": False}


def test_no_search_if_all_names_are_known(trees, monkeypatch):
    _, upper, fds = trees
    (upper / "a").write_text("a")
    os.link(upper / "a", upper / "b")
    monkeypatch.setattr(diff, "_names_of", lambda *_: pytest.fail("the whole tree was searched"))
    assert completed(fds, [b"a", b"b"]) == {b"a": False, b"b": False}


def test_links_out_of_the_tree_are_not_followed(trees, tmp_path):
    _, upper, fds = trees
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "x").write_text("x")
    (upper / "link").symlink_to(tmp_path / "secret")
    assert completed(fds, [b"link/x"], [b"link"]) == {b"link/x": False}
