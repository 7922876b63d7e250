"""kill -9 of the registry, of its collection and of its check, at random moments of all that they do.

What a client was told is there and whole; nothing else is half there; what was cut goes on, or is done again with
success; after a collection nothing is left over. COWSHED_REGISTRY_KILLS says how often each.
"""

import os
import random
import subprocess
import threading
import time

import pytest
from cowshed_testing.distribution import MANIFEST, Client, digest, manifest
from cowshed_testing.registry import Ours

from .conftest import COMMAND

KILLS = int(os.environ.get("COWSHED_REGISTRY_KILLS", "3"))
LATEST = 0.6  # seconds until a kill: longer than what is killed takes
COLLECTED = ("MANIFEST_BLOB_UNKNOWN", "BLOB_UPLOAD_UNKNOWN", "while it was")  # what a push may meet without grace


def cowshed(*words, status=0):
    done = subprocess.run([COMMAND, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode in (status if isinstance(status, tuple) else (status,)), (done.stdout, done.stderr)
    return done.stdout


def spawn(*words):
    return subprocess.Popen([COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def clean(folder):
    """After a collection without grace nothing is left, and all that is there is what it is named."""
    cowshed("registry", "gc", folder, "--grace", "0", "--untagged")
    assert cowshed("registry", "check", folder) == "clean\n"
    files = [f"{base}/{name}" for base, _, names in os.walk(folder) for name in names]
    assert not [path for path in files if path.startswith(f"{folder}/uploads") or path.endswith(".new")]
    pool = [path for path in files if path.startswith(f"{folder}/blobs/")]
    assert all(os.stat(path).st_nlink > 1 for path in pool), "a blob of nobody"


def put(client, name, data, wanted):
    return client("PUT", f"{client.begin(name)}?digest={wanted}", data)


def post(client, name, data, wanted):
    return client("POST", f"/v2/{name}/blobs/uploads/?digest={wanted}", data, Content_Type="application/octet-stream")


def chunks(client, name, data, wanted):
    location = client.begin(name)
    client.open = name, location, data, wanted
    step = len(data) // 3 + 1
    for at in range(0, len(data), step):
        piece = data[at : at + step]
        answer = client("PATCH", location, piece, Content_Range=f"{at}-{at + len(piece) - 1}")
        assert answer.status == 202, answer.body
    return client("PUT", f"{location}?digest={wanted}")


def mount(client, name, data, wanted):
    other = f"{name}/base"
    answer = put(client, other, data, wanted)
    assert answer.status == 201, answer.body
    answer = client("POST", f"/v2/{name}/blobs/uploads/?mount={wanted}&from={other}", b"")
    if answer.status == 202:  # collected meanwhile
        return client("PUT", f"{answer['Location']}?digest={wanted}", data)
    return answer


WAYS = (put, post, chunks, mount)


class Pusher(threading.Thread):
    """Pushes images in every way there is and deletes some of them again, until the registry is gone. done, deleted:
    what it was told has happened; doing: (repository, tag, layer) of what it was told nothing about."""

    def __init__(self, address, number, chance):
        super().__init__()
        self.client, self.number, self.chance = Client(address), number, chance
        self.client.open = None
        self.name = f"k/{number % 2}"
        self.done, self.deleted, self.doing, self.wrong = {}, set(), None, None

    def run(self):
        try:
            for step in range(10_000):
                tag = f"t{self.number}-{step}"
                self.doing = self.name, tag, self.chance.randbytes(self.chance.choice((10, 5000, 300_000)))
                self.done[tag] = self.push(*self.doing)
                if self.chance.random() < 0.3:
                    wanted = self.chance.choice((tag, self.done[tag]))
                    self.client("DELETE", f"/v2/{self.name}/manifests/{wanted}")
                    self.deleted.add(tag)
        except (OSError, self.client.ended):
            pass
        except BaseException as error:
            self.wrong = error
        finally:
            self.client.close()

    def push(self, name, tag, layer):
        """One that a collection without a grace period has got in the way of is pushed again."""
        while True:
            try:
                return self.push_once(name, tag, layer)
            except AssertionError as error:
                if not any(word in str(error) for word in COLLECTED):
                    raise

    def push_once(self, name, tag, layer):
        named = []
        for data in (b"config", layer):
            named.append(digest(data, self.chance.choice(("sha256", "sha512"))))
            answer = self.chance.choice(WAYS)(self.client, name, data, named[-1])
            assert answer.status == 201, answer.body
            self.client.open = None
        made = manifest(named[0], named[1:], [6, len(layer)])
        by = self.chance.choice((tag, f"{digest(made)}?tag={tag}"))
        answer = self.client("PUT", f"/v2/{name}/manifests/{by}", made, Content_Type=MANIFEST)
        assert answer.status == 201, answer.body
        return digest(made)


def tags(client, name):
    found = client("GET", f"/v2/{name}/tags/list")
    return found.json["tags"] if found.status == 200 else []


def everything(client):
    """tag: digest, of all that is there, each read whole."""
    return {tag: client.whole(name, tag) for name in ("k/0", "k/1") for tag in tags(client, name)}


def go_on(client, name, location, data, wanted):
    """An upload in chunks that was cut goes on where it is, if it has not ended or been collected."""
    there = client("GET", location)
    if there.status == 404:
        return
    assert there.status == 204
    at = int(there["Range"].partition("-")[2]) + 1
    if at == 1:  # said of one byte, and of none: one of these is refused
        assert client("PATCH", location, data[:1], Content_Range="0-0").status in (202, 416)
    assert client("PUT", f"{location}?digest={wanted}", data[at:]).status == 201
    assert client("GET", f"/v2/{name}/blobs/{wanted}").body == data


@pytest.mark.parametrize("beside", ["collection", "check"])
def test_the_registry_is_killed_while_images_are_pushed_and_deleted(tmp_path, beside):
    """Beside it garbage is collected without any grace, which is killed half of the times; or all is checked, which
    finds nothing wrong with what is going on."""
    chance = random.Random(11)
    folder = str(tmp_path / "registry")
    expected, cut = {}, []
    words = {
        "collection": ("registry", "gc", folder, "--grace", "0", "--untagged"),
        "check": ("registry", "check", folder, "--repair"),
    }[beside]
    for turn in range(KILLS):
        with Ours(COMMAND, folder) as ours:
            client = Client(ours.address)
            uncertain = {f"t{pusher.number}-{len(pusher.done) - step}" for pusher in cut for step in (0, 1)}
            there = everything(client)
            assert {tag: one for tag, one in there.items() if tag not in uncertain} == expected
            for pusher in cut:
                if pusher.client.open is not None:
                    go_on(client, *pusher.client.open)
                name, tag, layer = pusher.doing
                again = Pusher(ours.address, pusher.number, chance)
                there[tag] = again.push(name, tag, layer)
                again.client.close()
                assert client.whole(name, tag) == there[tag]
            for name in ("k/0", "k/1"):
                for tag in tags(client, name):
                    if chance.random() < 0.7:
                        assert client("DELETE", f"/v2/{name}/manifests/{tag}").status == 202
                        del there[tag]
            client.close()
            expected = there
            cut = [Pusher(ours.address, turn * 4 + number, random.Random(turn * 4 + number)) for number in range(3)]
            for pusher in cut:
                pusher.start()
            other = spawn(*words) if turn % 2 else None
            time.sleep(chance.random() * LATEST)  # any moment
            ours.process.kill()
            if other is not None:
                killed = chance.random() < 0.5
                other.kill() if killed else None
                said, _ = other.communicate(timeout=60)
                assert killed or not other.returncode, said
            for pusher in cut:
                pusher.join(60)
                assert pusher.wrong is None
                last = {f"t{pusher.number}-{len(pusher.done) - step}" for step in (0, 1)}
                expected.update({t: one for t, one in pusher.done.items() if t not in pusher.deleted | last})
    clean(folder)


def test_a_check_that_mends_is_killed(tmp_path):
    """Blobs and manifests are damaged, and the check that takes them out is killed; the next one ends it, and what is
    pushed then is whole."""
    chance = random.Random(12)
    folder = str(tmp_path / "registry")
    shared = chance.randbytes(200_000)
    images = {f"v{number}": (b"config", shared, chance.randbytes(50_000)) for number in range(5)}
    with Ours(COMMAND, folder) as ours:
        client = Client(ours.address)
        for turn in range(KILLS + 1):
            named = {(name, tag): client.image(name, tag, images[tag]) for name in ("k/0", "k/1") for tag in images}
            cowshed("registry", "check", folder, "--repair")
            assert all(client.whole(name, tag) == one for (name, tag), one in named.items())
            if turn == KILLS:
                break
            for name in chance.sample(sorted(os.listdir(f"{folder}/blobs/sha256")), 3):
                damage(f"{folder}/blobs/sha256/{name}", chance)
            first = spawn("registry", "check", folder, "--repair")
            time.sleep(chance.random() * LATEST)
            first.kill()
            first.communicate(timeout=60)
            cowshed("registry", "check", folder, "--repair", status=(0, 1))
            wanted = {f"manifests/{one}" for one in named.values()}
            wanted |= {f"blobs/{digest(data)}" for blobs in images.values() for data in blobs}
            for path in wanted:
                answer = client("GET", f"/v2/{chance.choice(('k/0', 'k/1'))}/{path}")
                assert answer.status == 404 or digest(answer.body) == path.partition("/")[2]
        client.close()
    clean(folder)


def damage(path, chance):
    """Change a byte, or cut it off."""
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        at = chance.randrange(os.stat(path).st_size)
        if chance.random() < 0.3:
            file.truncate(at)
        else:
            file.seek(at)
            old = file.read(1)
            file.seek(at)
            file.write(bytes([old[0] ^ 1]))


class Puller(threading.Thread):
    """Pulls images until the registry is gone: no answer that ends has anything wrong in it."""

    def __init__(self, address, tags, chance):
        super().__init__()
        self.client, self.tags, self.chance, self.wrong = Client(address), tags, chance, None

    def run(self):
        try:
            while True:
                self.client.whole("k/0", self.chance.choice(self.tags))
        except (OSError, self.client.ended):
            pass
        except BaseException as error:
            self.wrong = error
        finally:
            self.client.close()


def test_a_cache_is_killed_while_images_are_pulled(tmp_path):
    """What comes from another registry, half of the times while garbage is collected without any grace."""
    chance = random.Random(13)
    folder = str(tmp_path / "cache")
    shared = chance.randbytes(400_000)
    tags = []
    with Ours(COMMAND, str(tmp_path / "origin")) as origin:
        source = Client(origin.address)
        for turn in range(KILLS + 1):
            with Ours(COMMAND, folder, "--upstream", origin.address) as cache:
                client = Client(cache.address)
                for tag in tags:
                    client.whole("k/0", tag)
                client.close()
                if turn == KILLS:
                    break
                tags = [f"t{turn}-{number}" for number in range(4)]
                for tag in tags:
                    source.image("k/0", tag, blobs=(b"config", shared, chance.randbytes(300_000)))
                pullers = [Puller(cache.address, tags, random.Random(turn * 3 + number)) for number in range(3)]
                for puller in pullers:
                    puller.start()
                other = spawn("registry", "gc", folder, "--grace", "0", "--untagged") if turn % 2 else None
                time.sleep(chance.random() * LATEST)
                cache.process.kill()
                if other is not None:
                    other.communicate(timeout=60)
                for puller in pullers:
                    puller.join(60)
                    assert puller.wrong is None
        source.close()
    clean(folder)
