"""Every verb and option, as data. Parser, --help and the reference page come from here."""

from __future__ import annotations

from cowshed_runtime.command.parser import Option, Verb

GLOBAL = (
    Option("--root", "text", "where the state of containers is kept; it should not survive a reboot", "DIRECTORY"),
    Option("--log", "text", "a file to which messages are appended, in place of stderr", "FILE"),
    Option("--log-format", "text", "text or json", "FORMAT"),
    Option("--debug", "flag", "tell more, and where an internal error came from"),
    Option("--systemd-cgroup", "flag", "let systemd make the control groups: linux.cgroupsPath is SLICE:PREFIX:NAME"),
    Option("--cgroup-manager", "text", "cgroupfs or systemd: who makes the control groups; disabled: nobody", "NAME"),
    Option("--rootless", "maybe", "whether limits that a plain user may not set are left out: true, false or auto"),
    Option("-h --help", "flag", "this help"),
    Option("-v --version", "flag", "the version"),
)
_HELP = Option("-h --help", "flag", "this help")
_CONSOLE = Option("--console-socket", "text", "a UNIX socket that is sent the master of the process's terminal", "PATH")
_PIDFD = Option("--pidfd-socket", "text", "a UNIX socket that is sent a pidfd of the process", "PATH")
_PID_FILE = Option("--pid-file", "text", "a file for the process's pid", "FILE")
_PRESERVE = Option("--preserve-fds", "int", "how many descriptors from 3 on (after LISTEN_FDS) the process inherits")
_BUNDLE = Option("-b --bundle", "text", "the directory that holds config.json (the working directory)", "DIRECTORY")
_DETACH = Option("-d --detach", "flag", "do not wait for its end")
_START = (
    _BUNDLE,
    Option("-f --config", "text", "the configuration, if it is not config.json of the bundle", "FILE"),
    _CONSOLE,
    _PIDFD,
    _PID_FILE,
    _PRESERVE,
    Option("--no-pivot", "flag", "do not use pivot_root(2): for a host whose root is an initramfs"),
    Option("--no-new-keyring", "flag", "leave it the caller's session keyring"),
    Option("--dry-run", "flag", "print the plan and do nothing"),
)
_CRIU = (
    Option("--image-path", "text", "the directory of criu's images (checkpoint)", "DIRECTORY"),
    Option("--work-path", "text", "the directory of criu's log, if it is not that of the images", "DIRECTORY"),
    Option("--tcp-established", "flag", "also with TCP connections, which are kept"),
    Option("--tcp-close", "flag", "also with TCP connections, which are closed"),
    Option("--ext-unix-sk", "flag", "also with UNIX sockets that are connected to others outside"),
    Option("--shell-job", "flag", "also with a terminal or session of the caller's"),
    Option("--file-locks", "flag", "also with locks on files"),
    Option(
        "--manage-cgroups-mode",
        "text",
        "what criu does about groups below the container's: soft (which is the default), full, strict or ignore",
        "MODE",
    ),
    Option("--empty-ns", "list", "network: do not keep what is in it, which is always so", "NAMESPACE"),
    Option("--auto-dedup", "flag", "free the images' memory as it is read"),
)
_FORMAT = Option("-f --format", "text", "table or json", "FORMAT")

VERBS = (
    Verb("create", "ID", "make a container, which waits before it executes its program", (*_START, _HELP),
         module="create", enters=True),
    Verb("start", "ID", "let a container that was made execute its program", (_HELP,)),
    Verb("run", "ID", "make a container, start it, wait for its end, delete it", (
        *_START, _DETACH,
        Option("--keep", "flag", "do not delete it after its end"),
        Option("--no-subreaper", "flag", "do not adopt the container's orphans"),
        _HELP), module="create:run", enters=True),
    Verb("state", "ID", "print a container's state", (_HELP,)),
    Verb("kill", "ID [SIGNAL]", "send a signal to a container's first process", (
        Option("-a --all", "flag", "to all of its processes"), _HELP), most=2),
    Verb("delete", "ID", "delete a container that has ended", (
        Option("-f --force", "flag", "kill it before, if it runs; one that does not exist is no error"),
        Option("-r --regex", "flag", "ID is a regular expression: all whose id it matches"), _HELP)),
    Verb("exec", "ID [PROGRAM [ARGUMENT…]]", "start another process in a container", (
        Option("-p --process", "text", "a JSON file with the process object", "FILE"),
        Option("-t --tty", "flag", "give it a terminal"),
        _CONSOLE, _PIDFD, _PID_FILE, _DETACH,
        Option("--cwd", "text", "its working directory", "PATH"),
        Option("-e --env", "list", "a variable of its environment", "NAME=VALUE"),
        Option("-u --user", "text", "its user and group, as numbers", "UID[:GID]"),
        Option("-g --additional-gids", "list", "a further group, as a number", "GID"),
        Option("-c --cap", "list", "a further capability", "CAPABILITY"),
        Option("--process-label", "text", "its SELinux label", "LABEL"),
        Option("--apparmor", "text", "its AppArmor profile", "PROFILE"),
        Option("--no-new-privs", "flag", "it can gain no privileges by execve(2)"),
        _PRESERVE,
        Option("--cgroup", "text", "an existing group below the container's", "PATH"),
        Option("--ignore-paused", "flag", "start it although the container is paused"),
        _HELP), most=-1, foreign=True, enters=True),
    Verb("ps", "ID [PS-OPTION…]", "list a container's processes", (_FORMAT, _HELP), most=-1, foreign=True),
    Verb("list", "", "list containers", (
        _FORMAT, Option("-q --quiet", "flag", "only ids"), _HELP), least=0, most=0),
    Verb("pause", "ID", "stop all processes of a container where they are", (_HELP,)),
    Verb("resume", "ID", "let them go on", (_HELP,), module="pause:resume"),
    Verb("checkpoint", "ID", "write a container's state into a directory, by criu, and end it", (
        *_CRIU,
        Option("--leave-running", "flag", "let it go on"),
        Option("--tcp-skip-in-flight", "flag", "leave out connections that are being made"),
        Option("--link-remap", "flag", "give files that were removed a name, if there is a link"),
        _HELP)),
    Verb("restore", "ID", "make a container from its bundle and the state that checkpoint has written", (
        _BUNDLE, *_CRIU, _CONSOLE, _PID_FILE, _DETACH,
        Option("--lsm-profile", "text", "another profile of AppArmor or label of SELinux: TYPE:NAME", "TEXT"),
        Option("--lsm-mount-context", "text", "another SELinux label of its mounts", "LABEL"),
        Option("--no-pivot", "flag", "ignored: criu has its own way"),
        Option("--no-subreaper", "flag", "do not adopt the container's orphans"),
        _HELP), module="checkpoint:restore"),
    Verb("update", "ID", "change a container's limits", (
        Option("-r --resources", "text", "a JSON file with linux.resources, - for stdin; other options are ignored",
               "FILE"),
        Option("--blkio-weight", "int", "block input and output, relative to others: 10 to 1000"),
        Option("--cpu-period", "int", "microseconds of a period of --cpu-quota"),
        Option("--cpu-quota", "int", "microseconds of processor time in a period"),
        Option("--cpu-burst", "int", "microseconds that may be saved up for later periods"),
        Option("--cpu-share", "int", "processor time, relative to others"),
        Option("--cpu-rt-period", "int", "microseconds of a period of --cpu-rt-runtime"),
        Option("--cpu-rt-runtime", "int", "microseconds of real time in a period"),
        Option("--cpu-idle", "int", "1: runs when nothing else does"),
        Option("--cpuset-cpus", "text", "the processors that it may use", "LIST"),
        Option("--cpuset-mems", "text", "the memory nodes that it may use", "LIST"),
        Option("--memory", "int", "bytes of memory", "BYTES"),
        Option("--memory-reservation", "int", "bytes that it is to have when memory is scarce", "BYTES"),
        Option("--memory-swap", "int", "bytes of memory and swap; -1: no limit", "BYTES"),
        Option("--pids-limit", "int", "processes; -1: no limit"),
        Option("--l3-cache-schema", "text", "the schema of the L3 cache (resctrl)", "SCHEMA"),
        Option("--mem-bw-schema", "text", "the schema of memory bandwidth (resctrl)", "SCHEMA"),
        _HELP)),
    Verb("events", "ID", "print what a container uses, now and then, and when it is out of memory, as lines of JSON", (
        Option("--stats", "flag", "once, and end"),
        Option("--interval", "text", "how often: 500ms, 5s, 1m (5s)", "TIME"),
        _HELP)),
    Verb("features", "", "print what this runtime can do, as JSON (features.md of the specification)", (_HELP,),
         least=0, most=0),
    Verb("spec", "", "write a config.json to begin with", (
        _BUNDLE, Option("--rootless", "flag", "one for a plain user"), _HELP), least=0, most=0),
)  # fmt: skip


def find(name: str) -> Verb | None:
    return next((verb for verb in VERBS if verb.name == name), None)
