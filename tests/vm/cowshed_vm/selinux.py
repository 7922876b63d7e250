"""The smallest SELinux policy that knows the labels of containers, as CIL for secilc(8).

Debian's own lacks the types of containers. Here the host may do everything, and a container what its files' type
offers, within its own categories. It is for a guest booted with `--append lsm=landlock,lockdown,yama,selinux,bpf`.
"""

from __future__ import annotations

CATEGORIES = 1024
_FILE = """ioctl read write create getattr setattr lock relabelfrom relabelto append map unlink link rename execute
    quotaon mounton audit_access open execmod watch watch_mount watch_sb watch_with_perm watch_reads"""
_FILE_CLASSES = "lnk_file chr_file blk_file sock_file fifo_file".split()
CLASSES = {
    "file": f"{_FILE} execute_no_trans entrypoint",
    "dir": f"{_FILE} add_name remove_name reparent search rmdir",
    **dict.fromkeys(_FILE_CLASSES, _FILE),
    "process": """fork transition sigchld sigkill sigstop signull signal ptrace getsched setsched getsession getpgid
        setpgid getcap setcap share getattr setexec setfscreate noatsecure siginh setrlimit rlimitinh dyntransition
        setcurrent execmem execstack execheap setkeycreate setsockcreate getrlimit""",
    "filesystem": "mount remount unmount getattr relabelfrom relabelto associate quotamod quotaget watch",
    "security": """compute_av compute_create compute_member check_context load_policy compute_relabel compute_user
        setenforce setbool setsecparam setcheckreqprot read_policy validate_trans""",
    "fd": "use",
    "key": "view read write search link setattr create",
}
# In the kernel's order.
SIDS = """kernel security unlabeled fs file file_labels init any_socket port netif netmsg node igmp_packet icmp_socket
    tcp_socket sysctl_modprobe sysctl sysctl_fs sysctl_kernel sysctl_net sysctl_net_unix sysctl_vm sysctl_dev kmod
    policy scmp_packet devnull""".split()
TYPES = """kernel_t unlabeled_t file_t fs_t proc_t sysfs_t device_t container_t container_file_t container_ro_file_t
    spc_t security_t""".split()
LABELLED = "ext4 xfs btrfs zfs overlay".split()  # file systems that keep a label with each file
IN_MEMORY = {"tmpfs": "file_t", "shm": "file_t", "mqueue": "file_t", "devtmpfs": "device_t", "devpts": "device_t"}
GENERATED = {
    "proc": "proc_t",
    "sysfs": "sysfs_t",
    "selinuxfs": "security_t",
    "cgroup2": "sysfs_t",
    "rootfs": "file_t",
    "securityfs": "sysfs_t",
}


def cil() -> str:
    lines = ["(handleunknown allow)", "(mls true)"]
    lines += [f"(class {name} ({' '.join(permissions.split())}))" for name, permissions in CLASSES.items()]
    lines += [f"(classorder ({' '.join(CLASSES)}))"]
    lines += [f"(sid {name})" for name in SIDS] + [f"(sidorder ({' '.join(SIDS)}))"]
    lines += _levels() + _types() + _rules()
    lines += [f"(sidcontext {name} {_sid(name)})" for name in SIDS]
    lines += [f"(fsuse xattr {name} {_object('file_t')})" for name in LABELLED]
    lines += [f"(fsuse trans {name} {_object(kind)})" for name, kind in IN_MEMORY.items()]
    lines += [f"(fsuse task {name} {_object('file_t')})" for name in ("pipefs", "sockfs")]
    lines += [f"(genfscon {name} / {_object(kind)})" for name, kind in GENERATED.items()]
    return "".join(f"{line}\n" for line in lines)


def _levels() -> list[str]:
    names = [f"c{number}" for number in range(CATEGORIES)]
    lines = ["(sensitivity s0)", "(sensitivityorder (s0))", *(f"(category {name})" for name in names)]
    return [*lines, f"(categoryorder ({' '.join(names)}))", f"(sensitivitycategory s0 (range c0 {names[-1]}))"]


def _types() -> list[str]:
    last = CATEGORIES - 1
    lines = ["(user system_u)", "(role system_r)", "(role object_r)", "(userrole system_u system_r)"]
    lines += ["(userrole system_u object_r)", "(userlevel system_u (s0))"]
    lines += [
        f"(userrange system_u ((s0) (s0 (range c0 c{last}))))",
        "(typeattribute anything)",
        "(typeattribute host)",
    ]
    lines += [f"(type {name})" for name in TYPES]
    lines += [f"(typeattributeset anything ({' '.join(TYPES)}))", "(typeattributeset host (kernel_t spc_t))"]
    lines += [f"(roletype object_r {name})" for name in TYPES]
    return lines + [f"(roletype system_r {name})" for name in ("kernel_t", "container_t", "spc_t", "unlabeled_t")]


def _rules() -> list[str]:
    lines = [f"(allow host anything ({name} (all)))" for name in CLASSES]
    for name in ("file", "dir", *_FILE_CLASSES):
        search = " search" if name == "dir" else ""
        start = " entrypoint execute_no_trans" if name == "file" else ""
        lines += [f"(allow container_t container_file_t ({name} (all)))"]
        lines += [f"(allow container_t container_ro_file_t ({name} (read open getattr execute map{search}{start})))"]
        for kind in ("proc_t", "sysfs_t", "device_t", "kernel_t", "container_t"):
            lines += [f"(allow container_t {kind} ({name} (read write open getattr ioctl append{search})))"]
    lines += ["(allow container_t file_t (dir (search getattr)))", "(allow container_t self (process (all)))"]
    lines += ["(allow container_t anything (fd (use)))", "(allow container_t kernel_t (process (sigchld)))"]
    lines += [
        "(allow container_t anything (filesystem (getattr)))",
        "(allow anything anything (filesystem (associate)))",
    ]
    return lines + [f"(mlsconstrain ({name} (all)) (or (dom h1 h2) (neq t1 container_t)))" for name in ("file", "dir")]


def _sid(name: str) -> str:
    kinds = {"unlabeled": "unlabeled_t", "file": "file_t", "fs": "fs_t", "security": "security_t"}
    if name in ("kernel", "init", "kmod"):
        return f"(system_u system_r kernel_t ((s0) (s0 (range c0 c{CATEGORIES - 1}))))"
    return _object(kinds.get(name, "kernel_t"))


def _object(kind: str) -> str:
    return f"(system_u object_r {kind} ((s0) (s0)))"
