"""What `cowshed run`, `exec` and `attach` do with a monitor, as a process of its own: python -P command.py ORDER."""

import json
import sys
import time

from cowshed.errors import CowshedError
from cowshed.monitor import client, relay
from cowshed_linux import mount


def main(order: dict) -> int:
    request, terminal = order["request"], order["request"].get("terminal", False)
    operation, stdin = order["operation"], order.get("stdin", True)
    if operation == "run":
        root = mount.clone(order["tree"])
        session = client.start(order["run"], request, root, attached=order["attached"])
        if not order["attached"]:
            return 0
        stdin = (stdin and request["stdin"]) or (terminal and stdin)
    elif operation == "exec":
        session = client.execute(order["run"], request, stdin=stdin, attached=order.get("attached", True))
        if not order.get("attached", True):
            return 0
    else:
        session = client.attach(order["place"], terminal=terminal)
    time.sleep(order.get("idle", 0))
    keys = relay.detach_sequence(order.get("detach", "ctrl-p,ctrl-q"))
    return relay.relay(session, stdin=stdin, detach=keys) % 256  # DETACHED is 255 here


if __name__ == "__main__":
    try:
        status = main(json.loads(sys.argv[1]))
    except CowshedError as error:
        sys.stderr.write(f"{error}\n")
        status = getattr(error, "status", 125)
    sys.exit(status)
