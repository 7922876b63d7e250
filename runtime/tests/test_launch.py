"""Launching: streams, status, identity, what a container sees."""


def test_true_and_false(box):
    assert box.run("/bin/true").status == 0


def test_output_status_and_arguments(box):
    done = box.sh("echo out; echo err >&2; exit 7")
    assert (done.status, done.out, done.err) == (7, "out\n", "err\n")
