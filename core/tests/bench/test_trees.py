"""Recipes: what is written is what their digest says."""

import os

from cowshed.bench.trees import Recipe, digest
from cowshed.layers.apply import apply


def recipe():
    it = Recipe().many("a", 3, 100)
    it.add("b/large", (1 << 20) + 17, mode=0o600)
    it.add("empty", 0)
    return it


def test_a_tree_that_was_written_has_the_digest_of_its_recipe(tmp_path):
    recipe().write(str(tmp_path))
    assert digest(str(tmp_path)) == recipe().digest()


def test_every_difference_changes_the_digest(tmp_path):
    recipe().write(str(tmp_path))
    whole = digest(str(tmp_path))
    seen = {whole}
    (tmp_path / "new").write_bytes(b"")
    seen.add(digest(str(tmp_path)))
    (tmp_path / "new").unlink()
    os.chmod(tmp_path / "empty", 0o700)
    seen.add(digest(str(tmp_path)))
    os.chmod(tmp_path / "empty", 0o644)
    with open(tmp_path / "b/large", "r+b") as file:
        file.seek(1 << 19)
        file.write(b"?")
    seen.add(digest(str(tmp_path)))
    assert len(seen) == 4


def test_two_files_have_different_bytes():
    it = recipe()
    assert it.data("a/0/0") != it.data("a/0/1")
    assert len(it.data("b/large")) == (1 << 20) + 17


def test_the_archive_holds_the_same(tmp_path):
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        apply([recipe().archive()], root)
    finally:
        os.close(root)
    assert digest(str(tmp_path)) == recipe().digest()
