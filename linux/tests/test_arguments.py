import subprocess
import sys


def test_what_is_hidden_is_not_in_the_list_of_processes():
    script = """if True:
        import os, sys
        from cowshed_linux import arguments
        arguments.hide("s3cr\\u00e9t")
        arguments.hide("")
        arguments.hide("not there")
        child = os.fork()
        with open("/proc/self/cmdline", "rb") as file:
            sys.stdout.buffer.write(b"\\0".join(file.read().split(b"\\0")[-5:-1]) + b"\\n")
            sys.stdout.flush()
        if child:
            os.waitpid(child, 0)
    """
    words = [sys.executable, "-c", script, "--creds", "me:s3cr\u00e9t", "--creds=s3cr\u00e9ts3cr\u00e9t", "rest"]
    said = subprocess.run(words, capture_output=True, check=True).stdout
    lines = [line.split(b"\0") for line in said.splitlines()]
    assert lines == [[b"--creds", b"me:" + b"x" * 7, b"--creds=" + b"x" * 14, b"rest"]] * 2
