"""Programs that are runtimes, and such as are none: what they are asked, tried and told."""

import os
import subprocess
from types import SimpleNamespace

import pytest

from cowshed.config.settings import Settings
from cowshed.errors import NotFound, Unsupported
from cowshed.runtimes import choice, initial, native, oci, program, registry, shim, trial
from cowshed.runtimes.api import Answers, Task
from cowshed.storage.errors import Unsupported as Misfit
from cowshed.storage.registry import Found
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.fastjson import loads

USAGE = "COMMANDS:\n   create  one\n   start   it\n   state   it\n   kill    it\n   delete  it\n   exec    in it\n"
SHIM = "Usage of a:\n  -address string\n  -namespace string\n  -publish-binary string\n"


def script(tmp_path, text, name="strange"):
    path = tmp_path / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_what_a_program_is_follows_from_its_answers_and_not_from_its_name(tmp_path):
    for text, kind in ((USAGE, "oci"), (SHIM, "shim"), ("no such thing", "")):
        path = script(tmp_path, f"cat <<'X'\n{text}\nX", "runc")
        plugins = [one for one in registry.installed() if one.plugin.programs]
        assert [one.name for one in plugins if one.plugin.drives(trial.ask(path))] == [kind][: bool(kind)]
    assert oci.plugin.drives(Answers("", "", {"ociVersionMin": "1.0.0"}))


def test_what_is_asked(tmp_path):
    path = script(
        tmp_path,
        f"case $1 in --help) cat <<'X'\n{USAGE}   features  f\nX\n;; --version) echo 'strange version 7'; echo spec;; "
        'features) echo \'{"ociVersionMax":"1.2.0","linux":{"seccomp":{"enabled":true}}}\';; esac',
    )
    answers = trial.ask(path)
    assert answers.version == "strange version 7"
    facts = oci.plugin.facts(answers)
    assert (facts["features"], facts["seccomp"], facts["exec"], facts["pause"]) == (True, True, True, False)
    assert not shim.plugin.drives(answers)


def test_a_program_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "_ANSWER", 0.2)
    with pytest.raises(LaunchError, match=r"does not answer within 0\.2 s"):
        trial.ask(script(tmp_path, "exec sleep 100"))
    with pytest.raises(LaunchError, match="cannot be run: No such file"):
        trial.ask(f"{tmp_path}/none")


def test_a_runtime_that_refuses_is_tried_in_every_way_and_told_in_its_words(tmp_path):
    path = script(
        tmp_path,
        f"case $1 in --help) cat <<'X'\n{USAGE}\nX\n;; --version) echo 1;; --root) "
        'printf \'{"level":"warning","msg":"w"}\\n{"level":"error","msg":"not on\\\\n this host"}\\n\' > "$4";'
        "exit 1;; esac",
    )
    found = {"path": path, "options": [], "settings": ""}
    tried = trial.examine(found, str(tmp_path / "place"), registry.installed())
    assert (tried.kind, tried.error) == ("oci", "strange create: not on this host")
    assert len(tried.refusals) >= 2
    assert {text for _, text in tried.refusals} == {"strange create: not on this host"}
    assert os.listdir(tmp_path) == ["strange"], "the trial has left something"
    trial.remember(found, str(tmp_path / "run"), tried)
    assert trial.recall(found, str(tmp_path / "run")).error == tried.error
    assert trial.recall({**found, "options": ["-x"]}, str(tmp_path / "run")) is None
    script(tmp_path, "exit 0")
    assert trial.recall(found, str(tmp_path / "run")) is None, "it is another program now"


def test_the_program_of_a_trial_runs_anywhere(tmp_path):
    code = trial._executable(os.uname().machine)
    assert code, "this machine has no program of its own yet"
    (tmp_path / "true").write_bytes(code)
    (tmp_path / "true").chmod(0o755)
    assert subprocess.run([tmp_path / "true"]).returncode == 7
    assert initial.is_static(str(tmp_path / "true"))
    assert not initial.is_static("/bin/ls")
    assert not initial.is_static("/etc/passwd")
    assert trial._executable("pdp11") == b""


TOLD = [
    ("create", 'exec: "x": executable file not found in $PATH', 127),
    ("create", "executable file `x` not found in $PATH: No such file or directory", 127),
    ("exec", 'exec: "/etc": permission denied', 126),
    ("create", "open executable: Operation not permitted", 126),
    ("start", "creating process: failed to load /etc: permission denied", 126),
    ("create", "exec format error", 126),
    ("create", "rootfs: no such file or directory", 125),
    ("kill", "exec: not found", 125),
    ("create", "unable to start: /bin: Permission denied", 126),
    ("create", "cgroups in hybrid mode not supported", 125),
]


@pytest.mark.parametrize(("verb", "text", "status"), TOLD)
def test_whose_fault_it_is(verb, text, status):
    error = program.failure(
        Task("id", "/f", "/usr/bin/strange"), verb, text, None if verb == "kill" else {"args": ["/bin"]}
    )
    assert (error.status, str(error)) == (status, f"strange {verb}: {text}")


def test_a_program_gets_three_descriptors_and_no_ignored_signal(tmp_path):
    kept = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(kept, True)
    said = os.memfd_create("said")
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    path = script(tmp_path, "ls /proc/$$/fd; grep SigIgn /proc/$$/status; pwd")
    assert program.run([path], (null, said, said), folder=str(tmp_path)) == 0
    text = os.pread(said, 4096, 0).decode().split()
    for fd in (kept, said, null):
        os.close(fd)
    # 10 is where the shell keeps its script
    assert [word for word in text if word.isdigit() and len(word) < 4 and word != "10"] == ["0", "1", "2"]
    assert text[-2:] == ["0" * 16, str(tmp_path)]


def test_names(tmp_path, monkeypatch):
    path = script(tmp_path, "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin")
    settings = Settings(
        "/r", "/rr", "", "", runtimes={"table": {"path": path, "options": ["-x"]}, "gone": {"path": "/none"}}
    )
    assert choice.find(settings, "table") == {"name": "table", "path": path, "options": ["-x"], "settings": ""}
    assert choice.find(settings, "strange")["path"] == path
    assert choice.find(settings, path)["path"] == path
    assert choice.find(settings, "native")["path"] == ""
    with pytest.raises(NotFound, match="/none is no program"):
        choice.find(settings, "gone")
    with pytest.raises(NotFound, match="is not known") as caught:
        choice.find(settings, "tabel")
    assert caught.value.remedy == "did you mean table?"
    assert {"native", "table", "gone"} <= {one.found["name"] for one in choice.known(settings)}


def test_an_init_is_put_before_the_command(monkeypatch):
    config = {"process": {"args": ["a", "b"]}, "mounts": [], "annotations": {"cowshed.init": "true"}}
    monkeypatch.setattr(initial, "is_static", lambda path: path.endswith("tini-static"))
    initial.give(config)
    assert config["process"]["args"] == ["/run/cowshed-init", "--", "a", "b"]
    assert config["mounts"][0]["source"].endswith("/tini-static")
    assert loads('{"a":1}') == {"a": 1}


class Own:
    """A plug-in that is a runtime by itself: it starts containers as ours does."""

    name, api, summary, programs = "own", (1, 0), "a test's", False

    def drives(self, answers):
        return False

    def facts(self, answers):
        return {"odd": True}

    def start(self, task, config, root, stdio):
        return native.plugin.start(task, config, root, stdio)

    def execute(self, task, work, linux, target, stdio):
        raise AssertionError

    def signal(self, task, target, number):
        raise AssertionError

    def end(self, task):
        native.plugin.end(task)


own = Own()


def test_a_plug_in_that_is_a_runtime_is_tried_once_in_a_boot(tmp_path, monkeypatch):
    found = [
        Found("own", "strange 1", registry.fit("own", own)),
        Found("broken", "strange 1", None, "it does not import"),
    ]
    monkeypatch.setattr(registry, "installed", lambda: found)
    monkeypatch.setattr(registry, "attr_of", lambda name: f"{__name__}:own")
    monkeypatch.setattr(choice, "_plugins", lambda: ["own", "broken"])
    tried = []
    monkeypatch.setattr(trial, "attempt", lambda value: tried.append(value) or "")
    settings = Settings("/r", str(tmp_path / "run"), "", "", runtime="own", runtime_from="a test")
    engine = SimpleNamespace(settings=settings)
    for _ in range(2):
        kept = choice.chosen(engine)
        assert (kept["name"], kept["kind"], kept["path"]) == ("own", "own", "")
    assert len(tried) == 1
    settings = Settings("/r", str(tmp_path / "run"), "", "", runtime="broken", runtime_from="a test")
    with pytest.raises(Unsupported, match=r"runtime broken \(a test\) cannot run a container here: it does not import"):
        choice.chosen(SimpleNamespace(settings=settings))
    told = {one.found["name"]: one.error for one in choice.known(settings)}
    assert (told["own"], told["broken"]) == ("", "it does not import")


@pytest.mark.parametrize(
    ("wrong", "text"),
    [({"name": "other"}, "calls itself other"), ({"api": (2, 0)}, "needs interface 2.0"), ({"api": (1, 9)}, "1.9")],
)
def test_a_plug_in_that_does_not_fit_is_refused(wrong, text):
    with pytest.raises(Misfit, match=text):
        registry.fit("own", type("Odd", (Own,), wrong)())
    with pytest.raises(Misfit, match="lacks summary, programs"):
        registry.fit("own", object())
