"""Templates of --format: what Docker's documentation shows, and what Go does beyond it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowshed.cli.output import listing
from cowshed.cli.template import Template
from cowshed.errors import BadUsage

CONTAINER = {
    "Id": "4f5e",
    "Name": "/web",
    "Image": "team/app:1.0",
    "Args": ["-c", "sleep 1"],
    "LogPath": "/store/log",
    "State": {"Status": "running", "Running": True, "Pid": 77, "ExitCode": 0},
    "Config": {"Image": "team/app:1.0", "Labels": {"com.example.a": "one", "b": "two"}, "Tty": False, "Cmd": None},
    "Mounts": [{"Source": "/a", "Destination": "/b", "RW": True}, {"Source": "/c", "Destination": "/d", "RW": False}],
    "NetworkSettings": {"Ports": {"80/tcp": [{"HostPort": "8080"}], "8787/tcp": [{"HostPort": "9000"}]}},
}


@pytest.mark.parametrize(
    ("template", "output"),
    [
        # from "Format command and log output" and "docker inspect" of Docker's documentation
        ('{{join .Args " , "}}', "-c , sleep 1"),
        ("{{json .Args}}", '["-c","sleep 1"]'),
        ("{{lower .Name}}", "/web"),
        ('{{split .Image ":"}}', "[team/app 1.0]"),
        ('{{title "ab cd"}}', "Ab Cd"),
        ("{{upper .Name}}", "/WEB"),
        ("{{pad .Image 2 1}}|", "  team/app:1.0 |"),
        ("{{truncate .Image 4}}", "team"),
        ("{{range .Mounts}}{{println .Source}}{{end}}", "/a\n/c\n"),
        (
            "{{range $p, $conf := .NetworkSettings.Ports}} {{$p}} -> {{(index $conf 0).HostPort}} {{end}}",
            " 80/tcp -> 8080  8787/tcp -> 9000 ",
        ),
        ('{{(index (index .NetworkSettings.Ports "8787/tcp") 0).HostPort}}', "9000"),
        ("{{.LogPath}}", "/store/log"),
        ("{{json .Config.Labels}}", '{"com.example.a":"one","b":"two"}'),
        ('{{index .Config.Labels "com.example.a"}}', "one"),
        ("{{.State.Status}} {{.State.Pid}}", "running 77"),
        # what scripts use beside that
        ("{{len .Mounts}}", "2"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ("{{if .Config.Tty}}a{{else if .State.Running}}b{{else}}c{{end}}", "b"),
        ("{{with .Config.Cmd}}{{.}}{{else}}none{{end}}", "none"),
        ("{{range .Config.Cmd}}x{{else}}nothing{{end}}", "nothing"),
        ('{{range $i, $m := .Mounts}}{{if $i}},{{end}}{{$m.Source}}:{{$m.Destination}}{{end}}', "/a:/b,/c:/d"),
        ('{{range .Mounts}}{{if not .RW}}{{continue}}{{end}}{{.Source}}{{break}}{{end}}', "/a"),
        ("{{.Config.Labels}}", "map[b:two com.example.a:one]"),
        ("{{.Args}}", "[-c sleep 1]"),
        ('{{eq .State.Status "created" "running"}}', "true"),
        ("{{if and .State.Running (gt .State.Pid 1)}}yes{{end}}", "yes"),
        ("{{or .Config.Cmd .Name}}", "/web"),
        ('{{.Name | upper | printf "%-6s|"}}', "/WEB  |"),
        ('{{printf "%s has %d, %q" .Name .State.Pid "x"}}', '/web has 77, "x"'),
        ("{{$n := .Name}}{{range .Mounts}}{{$n}}{{$.Id}};{{end}}", "/web4f5e;/web4f5e;"),
        ("a {{- /* no word */ -}} b{{/* none */}}", "ab"),
        ("{{ .Name -}}  \n x", "/webx"),
        ('{{"}}"}}{{`raw "text"`}}', '}}raw "text"'),
        ("{{.Config.Labels.absent}}", "<no value>"),
        ('{{index .Config.Labels "absent"}}', ""),
        ('{{slice .Image 0 4}}{{index .Args 1}}', "teamsleep 1"),
    ],
)  # fmt: skip
def test_renders(template, output):
    assert Template(template).render(CONTAINER) == output


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{.Nam}}", "did you mean Name?"),
        ("{{.State.Statsu}}", "did you mean Status?"),
        ("{{jsn .}}", "did you mean json?"),
        ("{{range .Mounts}}", "{{end}} of {{range …}} is missing"),
        ("{{end}}", "outside of a block"),
        ("{{break}}", "outside of {{range"),
        ("{{.Name", "has no end"),
        ("{{}}", "empty"),
        ("{{(.Name}}", "parenthesis"),
        ("{{index .Args 9}}", "index fails: 9 is out of range"),
        ("{{len .State.Pid}}", "len fails"),
        ("{{$x}}", "no variable $x"),
        ("{{.Name 3}}", "takes no arguments"),
        ("{{range .Name}}{{end}}", "cannot go over"),
    ],
)
def test_a_wrong_template_says_what_is_wrong(template, told):
    with pytest.raises(BadUsage) as caught:
        Template(template).render(CONTAINER)
    assert told in f"{caught.value}: {caught.value.remedy}"


PIECES = st.sampled_from(
    '{{ }} {{- -}} . .Name .State.Pid .Mounts $ $x := = | ( ) , range if else end with index len json "a" `b` 0 -1 1.5 '
    'break continue printf "%d" slice join split /* */ nil true .Config.Labels.b eq and or not x'.split()
)


@settings(derandomize=True, max_examples=1500, deadline=None)
@given(st.lists(PIECES, max_size=10))
def test_any_text_is_rendered_or_refused_by_type(pieces):
    for text in (
        " ".join(pieces),
        f"{{{{{' '.join(pieces)}}}}}",
        f"{{{{range .Mounts}}}}{{{{{' '.join(pieces)}}}}}{{{{end}}}}",
    ):
        try:
            rendered = Template(text).render(CONTAINER)
        except BadUsage:
            continue
        assert isinstance(rendered, str)


ROWS = [
    {"ID": "4f5e", "Names": "web", "CreatedAt": "now", "Label": {"role": "front"}.get},
    {"ID": "77aa", "Names": "a-longer-name", "CreatedAt": "then", "Label": {"role": "back"}.get},
]


def shown(capsys, wanted, rows=ROWS):
    listing(rows, ("ID", "Names", "CreatedAt"), wanted, what="ps", headings={"ID": "CONTAINER ID"})
    return capsys.readouterr().out


def test_a_table_has_titles_above_its_columns(capsys):
    assert shown(capsys, None) == (
        "CONTAINER ID   NAMES           CREATED AT\n"
        "4f5e           web             now\n"
        "77aa           a-longer-name   then\n"
    )  # fmt: skip


def test_a_table_of_a_template_has_the_titles_of_its_fields(capsys):
    assert shown(capsys, r'table {{.Names}}\t{{.Label "role"}}\t{{upper .ID}}') == (
        "NAMES           role    CONTAINER ID\n"
        "web             front   4F5E\n"
        "a-longer-name   back    77AA\n"
    )  # fmt: skip


def test_a_table_without_rows_still_has_titles(capsys):
    assert shown(capsys, r"table {{.Names}}\t{{.CreatedAt}}", []) == "NAMES   CREATED AT\n"


def test_json_is_one_object_a_line(capsys):
    assert shown(capsys, "json") == (
        '{"ID":"4f5e","Names":"web","CreatedAt":"now"}\n{"ID":"77aa","Names":"a-longer-name","CreatedAt":"then"}\n'
    )
    assert shown(capsys, "{{json .}}") == shown(capsys, "json")
