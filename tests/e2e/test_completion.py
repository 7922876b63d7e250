"""Completion in the real shells: what a person gets who presses TAB."""

import os
import pty
import re
import select
import subprocess
import time

import pytest

SHELLS = ["bash", "zsh", "fish"]


@pytest.fixture(scope="module")
def store(tmp_path_factory, greeting, engine_of):
    """A store with an image, and containers that ran and did not."""
    folder = tmp_path_factory.mktemp("completion")
    from pathlib import Path

    command = str(Path(__file__).parents[2] / ".venv/bin")
    env = {
        "PATH": f"{command}:/usr/bin:/bin", "HOME": str(folder), "TERM": "dumb", "LC_ALL": "C.UTF-8",
        "COWSHED_ROOT": f"{folder}/store", "COWSHED_RUN_ROOT": f"{folder}/run",
    }  # fmt: skip

    def cowshed(*words):
        subprocess.run(
            ["cowshed", *words], env=env, check=True, stdout=subprocess.DEVNULL, executable=f"{command}/cowshed"
        )

    cowshed("pull", "-q", greeting)
    cowshed("create", "--name", "created-box", "-v", "some-volume:/data", greeting, "true")
    cowshed("run", "-d", "--name", "running-box", greeting, "sleep", "600")
    (folder / "some-file").touch()
    for shell in SHELLS:
        script = subprocess.run([f"{command}/cowshed", "completion", shell], check=True, capture_output=True, text=True)
        (folder / f"cowshed.{shell}").write_text(script.stdout)
    yield env
    it = engine_of(folder)
    it.close()
    it.assert_clean()


def bash(env, line):
    """What bash puts in COMPREPLY, words cut as readline cuts them."""
    script = f"""source ~/cowshed.bash
COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}
compopt() {{ [[ $2 != default ]] || printf 'files\\n'; }}
_cowshed; printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "--norc", "-c", script], env=env, cwd=env["HOME"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def fish(env, line):
    """What fish offers; it can be asked without a terminal."""
    script = f"source ~/cowshed.fish; complete -C {line!r}"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script], env=env, cwd=env["HOME"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [text.partition("\t")[0] for text in done.stdout.splitlines()]


def typed(env, words, start, keys, until, seconds=30):
    """Run a shell on a terminal, wait for its prompt, type keys; what it shows until something matches."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(env["HOME"])
        os.execve(words[0], words, env)
    shown = b""

    def read_until(pattern):
        nonlocal shown
        deadline = time.monotonic() + seconds
        while not re.search(pattern, shown):
            ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} is not in {shown!r}"
            shown += os.read(terminal, 65536)

    try:
        os.write(terminal, start.encode() + b"\n")
        read_until(rb"ready\$ ")
        shown = b""
        os.write(terminal, keys.encode())
        read_until(until.encode())
        return shown.decode()
    finally:
        os.close(terminal)  # hangs up
        os.waitpid(pid, 0)


CASES = [
    ("cowshed ru", "run", "rmi"),
    ("cowshed --driv", "--driver", "--debug"),
    ("cowshed --driver ov", "overlay", "copy"),
    ("cowshed driver w", "why", "list"),
    ("cowshed storage convert --to ov", "overlay", "copy"),
    ("cowshed storage convert --to overlay --to-option xi", "xino=auto", "index=on"),
    ("cowshed run --pul", "--pull", "--rm"),
    ("cowshed run --pull ne", "never", "always"),
    ("cowshed run --rm -it --network h", "host", "none"),
    ("cowshed stop ", "running-box", "created-box"),
    ("cowshed start ", "created-box", "running-box"),
    ("cowshed rm -f cre", "created-box", "running-box"),
    ("cowshed kill -s TER", "TERM", "KILL"),
    ("cowshed completion f", "fish", "bash"),
    ("cowshed help ima", "images", "run"),
    ("cowshed run --driver overlay --driver-option xi", "xino=auto", "index=on"),
    ("cowshed volume rm ", "some-volume", "running-box"),
    ("cowshed inspect some-", "some-volume", "some-file"),
    ("cowshed storage df some-", "some-volume", "some-file"),
    ("cowshed storage why cre", "created-box", "some-volume"),
    ("cowshed --driver overlay --driver-option xi", "xino=auto", "index=on"),
]


@pytest.mark.parametrize(("line", "offered", "absent"), CASES)
@pytest.mark.parametrize("ask", [bash, fish])
def test_what_is_offered(store, ask, line, offered, absent):
    found = ask(store, line)
    assert offered in found
    assert absent not in found


@pytest.mark.parametrize("ask", [bash, fish])
def test_images_are_offered_by_their_whole_names(store, ask, greeting):
    assert greeting in ask(store, "cowshed run ")
    assert ask(store, "cowshed rmi 127.0.") == [greeting]


def test_bash_replaces_what_stands_behind_a_colon(store, greeting):
    """readline takes a colon for the end of a word; only what follows is put in."""
    head, _, tag = greeting.rpartition(":")
    assert bash(store, f"cowshed run {head}:l") == [tag]
    assert bash(store, "cowshed run --pull=ne") == ["never"]


@pytest.mark.parametrize("ask", [bash, fish])
def test_file_names_are_offered_where_files_are_meant(store, ask):
    assert ask(store, "cowshed run --hostname some") == []
    found = ask(store, "cowshed run --env-file some")
    assert found == (["files"] if ask is bash else ["some-file"])


@pytest.mark.parametrize("ask", [bash, fish])
def test_cp_offers_containers_then_files(store, ask):
    assert ask(store, "cowshed cp run") == ["running-box:"]
    assert ask(store, "cowshed cp some-f") == (["files"] if ask is bash else ["some-file"])


@pytest.mark.parametrize("ask", [bash, fish])
def test_nothing_is_offered_and_nothing_made_without_a_store(store, ask, tmp_path):
    env = {**store, "COWSHED_ROOT": str(tmp_path / "none")}
    assert ask(env, "cowshed start ") == []
    assert not (tmp_path / "none").exists()


def test_bash_on_a_terminal(store):
    words, start = ["/usr/bin/bash", "--norc", "-i"], "source ~/cowshed.bash; PS1='rea''dy$ '"
    assert "cowshed run --network" in typed(store, words, start, "cowshed run --netw\t", r"--network")
    typed(store, words, start, "cowshed stop \t", r"stop running-box")
    typed(store, words, start, "cowshed run --env-file so\t", r"some-file")


def test_zsh_on_a_terminal(store):
    words = ["/usr/bin/zsh", "-f", "-i"]
    start = "autoload -U compinit; compinit -u -D; source ~/cowshed.zsh; PS1='rea''dy$ '"
    typed(store, words, start, "cowshed resta\t", r"restart")
    typed(store, words, start, "cowshed --driver ov\t", r"overlay")
    typed(store, words, start, "cowshed stop \t", r"stop running-box")
    typed(store, words, start, "cowshed driver \t", r"(?s)list.*why|why.*list")
    typed(store, words, start, "cowshed rmi 127\t", r"greeting")
    typed(store, words, start, "cowshed run --env-file so\t", r"some-file")
