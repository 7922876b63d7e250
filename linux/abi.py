"""Writes src/cowshed_linux/_abi.py: `python linux/abi.py`.

cffi's out-of-line ABI mode: the declarations are parsed here, once, so that importing costs 1 ms instead of the 40 ms
that parsing them takes, and no compiler is needed. A test holds the generated file to this one.
"""

from pathlib import Path

import cffi

DECLARATIONS = """
int unshare(int flags);
int setns(int fd, int kind);
int mount(const char *source, const char *target, const char *kind, unsigned long flags, const void *data);
int umount2(const char *target, int flags);
int pivot_root(const char *new_root, const char *put_old);
int sethostname(const char *name, size_t length);
int setdomainname(const char *name, size_t length);
int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
int capset(void *header, const void *data);
int capget(void *header, void *data);
int personality(unsigned long persona);
int syncfs(int fd);
long syscall(long number, ...);

typedef struct {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
} clone_args;
typedef struct { uint64_t attr_set, attr_clr, propagation, userns_fd; } mount_attr;
typedef struct { uint64_t flags, mode, resolve; } open_how;
typedef struct { uint32_t version; int pid; } cap_header;
typedef struct { uint32_t effective, permitted, inheritable; } cap_data;
typedef struct { unsigned short length; void *filter; } sock_fprog;

typedef struct { unsigned int arg; int op; uint64_t datum_a, datum_b; } scmp_arg_cmp;
void *seccomp_init(uint32_t action);
void seccomp_release(void *filter);
int seccomp_arch_add(void *filter, uint32_t arch);
uint32_t seccomp_arch_resolve_name(const char *name);
int seccomp_syscall_resolve_name(const char *name);
int seccomp_rule_add_array(void *filter, uint32_t action, int call, unsigned int count, const scmp_arg_cmp *args);
int seccomp_export_bpf(void *filter, int fd);
typedef struct { unsigned int major, minor, micro; } scmp_version;
const scmp_version *seccomp_version(void);
"""

HERE = Path(__file__).parent


def generate() -> str:
    ffi = cffi.FFI()
    ffi.set_source("cowshed_linux._abi", None)
    ffi.cdef(DECLARATIONS)
    target = HERE / "build" / "_abi.py"
    target.parent.mkdir(exist_ok=True)
    ffi.emit_python_code(str(target))
    return target.read_text()


if __name__ == "__main__":
    (HERE / "src/cowshed_linux/_abi.py").write_text(generate())
