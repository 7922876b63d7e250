"""A driver whose layers are images of ext4 on loop devices, for what only a driver with activation can show.

    active/ID/disk/image   committed/ID/disk/image   template/image: an empty one, made by init()

A child's image is a copy of its parent's. A device is made by activate(), and given LO_FLAGS_AUTOCLEAR by deactivate():
the kernel takes it away with its last opener, as device-mapper does with a deferred removal.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from cowshed.storage import api
from cowshed.storage.errors import InUse, ToolFailed, Unsupported
from cowshed.storage.kit import directories
from cowshed.storage.kit.copying import Contents
from cowshed.storage.kit.trees import remove_tree

NAME = "loops"
SIZE = 192 << 20
# linux/loop.h
_CONFIGURE, _SET_STATUS, _GET_STATUS, _GET_FREE = 0x4C0A, 0x4C04, 0x4C05, 0x4C82
_READ_ONLY, _AUTOCLEAR = 1, 4
_INFO, _FLAGS = 232, 52  # bytes of struct loop_info64, and where lo_flags lies in it
_CAPABILITIES = {
    "granularity": api.Granularity.TREE,
    "activation": True,
    "live_snapshot": api.Consistency.CRASH,
    "idmapped_mounts": True,
}


class LoopDriver:
    def __init__(self, root, host):
        self._root, self._host = root, host
        self._at = directories.Directories(root, "disk", host)

    @property
    def capabilities(self):
        durability = api.Durability.COMMIT if self._at.durable else api.Durability.NONE
        return api.Capabilities(durability=durability, **_CAPABILITIES)

    def close(self):
        self._at.close()

    def health(self):
        there = self._at.health()
        reason = api.Reason("loops.tests", "its layers are images, for tests", "use overlay", api.Verdict.POOR)
        return api.Health(there.data_total, there.data_free, None, None, (reason,))

    def scan(self):
        yield from self._at.scan()
        for device, image in devices():
            if image.startswith(f"{os.path.realpath(self._root)}/"):
                layer = image.split("/")[-3].partition(".")[0]
                yield api.StoredObject(api.ObjectKind.AUXILIARY, device, layer)

    def prepare(self, new, options):
        if options.quota != api.Quota():
            raise Unsupported("the loops driver has no quota", layer=new.id)
        if self._at.exists(new):
            return {}
        source = f"{self._at.require(new.parent) if new.parent else f'{self._root}/template'}/image"
        temporary = self._at.temporary(new)
        self._host.step("loops.prepare.made")
        os.mkdir(f"{temporary}/disk")
        copy(source, f"{temporary}/disk/image")
        if new.parent is None and (options.root_uid or options.root_gid):
            device = attached(f"{temporary}/disk/image", read_only=False)
            try:
                with self._host.mounted(plan(device)) as tree:
                    os.chown(tree.path, options.root_uid, options.root_gid)
            finally:
                let_go(device)
        if options.durable:
            self._at.sync()
        self._host.step("loops.prepare.filled")
        self._at.publish(temporary, new, durable=options.durable)
        self._host.step("loops.prepare.published")
        return {}

    def commit(self, active, new, durability):
        if new.parent != active.parent:
            raise Unsupported("an image cannot be put on another parent", layer=active.id)
        self._refuse_mounted(active)
        self._at.commit(active, new, durable=durability > api.Durability.NONE, name=NAME)
        return {}

    def remove(self, layer):
        self._refuse_mounted(layer)
        self._at.discard(layer)
        self._host.step("loops.remove.renamed")

    def snapshot(self, active, new, durability):
        """The engine has paused the container and synced: what lies in the image is what was written."""
        if self._at.exists(new):
            return {}
        temporary = self._at.temporary(new)
        os.mkdir(f"{temporary}/disk")
        copy(f"{self._at.require(active)}/image", f"{temporary}/disk/image")
        device = attached(f"{temporary}/disk/image", read_only=False)
        try:
            with self._host.mounted(plan(device)):
                pass  # which replays the journal: nothing could do that once the layer is read-only
        finally:
            let_go(device)
        self._host.step("loops.snapshot.filled")
        if durability > api.Durability.NONE:
            self._at.sync()
        self._at.publish(temporary, new, durable=durability > api.Durability.NONE)
        return {}

    def _refuse_mounted(self, layer):
        device = device_of(self._image(layer))
        if device and opened_elsewhere(device):
            raise InUse(f"layer {layer.id} is mounted from {device}", layer=layer.id)
        if device:
            let_go(device)

    def purge(self, claim, budget):
        return self._at.purge(claim, budget)

    def _image(self, layer):
        return f"{self._at.content(layer)}/image"

    def activate(self, layer, *, read_only):
        self._at.require(layer)
        frozen = layer.kind is api.Kind.COMMITTED or cannot_be_written(self._image(layer))
        attached(self._image(layer), read_only=frozen)
        self._host.step("loops.activated")

    def deactivate(self, layer):
        device = device_of(self._image(layer))
        if device:
            let_go(device)

    def mounts(self, layer, request):
        if request.selinux_label:
            raise Unsupported("no SELinux label", layer=layer.id)
        self._at.require(layer)
        source = device_of(self._image(layer)) or self._image(layer)
        frozen = layer.kind is api.Kind.COMMITTED or cannot_be_written(self._image(layer))
        return plan(source, committed=frozen, read_only=request.read_only)

    def usage(self, layer):
        self.activate(layer, read_only=True)
        try:
            with self._host.mounted(self.mounts(layer, api.MountRequest(read_only=True))) as tree:
                status = os.statvfs(tree.path)
        finally:
            self.deactivate(layer)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        return api.Usage(own=used, shared=None, inodes=status.f_files - status.f_ffree, exact=False)


def plan(source, *, committed=False, read_only=False):
    options = (("ro", None),) if committed else ()
    return api.MountPlan(
        (api.FileSystem("ext4", source, read_only=committed or read_only, options=options),), subpath="root"
    )


def cannot_be_written(image):
    return bool(os.statvfs(image).f_flag & os.ST_RDONLY)


def copy(source, target):
    one = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    other = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        Contents().copy(one, other, os.fstat(one).st_size)
    finally:
        os.close(one)
        os.close(other)


# ---------------------------------------------------------------- loop devices


def devices():
    """Each loop device that is in use, with its image."""
    for name in os.listdir("/sys/block"):
        if name.startswith("loop"):
            try:
                with open(f"/sys/block/{name}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as file:
                    yield f"/dev/{name}", file.read().rstrip("\n")
            except OSError:
                continue


def device_of(image):
    image = os.path.realpath(image)
    return next((device for device, it in devices() if it == image), "")


def attached(image, *, read_only):
    """The device of an image, which stays until `let_go`: the one that it has, or a new one."""
    for _ in range(50):
        device = device_of(image)
        if device and change(device, clear=_AUTOCLEAR):
            return device
        if not device and (device := configured(image, read_only=read_only)):
            return device
    raise ToolFailed(f"no loop device for {image}")


def configured(image, *, read_only):
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        device = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
    finally:
        os.close(control)
    back = os.open(image, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    loop = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        info = bytearray(_INFO)
        struct.pack_into("=I", info, _FLAGS, _READ_ONLY if read_only else 0)
        fcntl.ioctl(loop, _CONFIGURE, struct.pack("=II", back, 0) + bytes(info) + bytes(64))
        return device
    except OSError as error:
        if error.errno != errno.EBUSY:  # else another was quicker
            raise
        return ""
    finally:
        os.close(loop)
        os.close(back)


def change(device, *, add=0, clear=0):
    """Set flags of a device; False if it is one no more."""
    try:
        loop = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        info = bytearray(_INFO)
        fcntl.ioctl(loop, _GET_STATUS, info)
        (flags,) = struct.unpack_from("=I", info, _FLAGS)
        struct.pack_into("=I", info, _FLAGS, (flags | add) & ~clear)
        fcntl.ioctl(loop, _SET_STATUS, bytes(info))
        return True
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return False
    finally:
        os.close(loop)


def let_go(device):
    change(device, add=_AUTOCLEAR)


def opened_elsewhere(device):
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


# ---------------------------------------------------------------- the plug-in


def probe(root, options, host):
    from cowshed.storage.kit.places import nearest_directory

    reason = api.Reason("loops.tests", "it is made for tests", "", api.Verdict.POOR)
    facts = {"place": nearest_directory(root)}
    if not os.path.exists("/dev/loop-control"):
        reason = api.Reason("loops.no-loop", "there is no /dev/loop-control", "modprobe loop", api.Verdict.UNUSABLE)
        return api.ProbeReport(None, facts, (reason,))
    return api.ProbeReport(api.Capabilities(durability=api.Durability.COMMIT, **_CAPABILITIES), facts, (reason,))


def init(root, options, host):
    identity = directories.init_store(root, NAME)
    if not os.path.exists(f"{root}/template/image"):
        remove_tree(f"{root}/template")
        remove_tree(f"{root}/template.new")
        os.makedirs(f"{root}/template.new/tree/root", mode=0o755)
        os.chmod(f"{root}/template.new/tree/root", 0o755)
        with open(f"{root}/template.new/image", "wb") as image:
            image.truncate(SIZE)
        make = ["mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-J", "size=4", "-N", "16384"]
        host.run([*make, "-d", f"{root}/template.new/tree", f"{root}/template.new/image"], timeout=60)
        remove_tree(f"{root}/template.new/tree")
        os.rename(f"{root}/template.new", f"{root}/template")
    return identity


def open_store(root, options, host, *, store):
    directories.check_store(root, NAME, store)
    return LoopDriver(root, host)


def destroy_store(root, options, host, *, store):
    for device, image in devices():
        if image.startswith(f"{os.path.realpath(root)}/"):
            let_go(device)
    remove_tree(f"{root}/template")
    directories.destroy_store(root, NAME, store)


plugin = api.DriverPlugin(
    name=NAME,
    api=api.API_VERSION,
    summary="images on loop devices, for tests",
    options=(),
    probe=probe,
    init=init,
    open=open_store,
    destroy=destroy_store,
)
