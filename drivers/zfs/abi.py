"""Writes src/cowshed_driver_zfs/_abi.py: `python drivers/zfs/abi.py`.

cffi's out-of-line ABI mode: the declarations are parsed here, once, so that importing them takes no C parser and no
compiler. They are those of OpenZFS 2.x (include/libzfs_core.h, include/sys/nvpair.h), the same from 2.1 to 2.4. A test
holds the generated file to this one; another compares each call with OpenZFS's own Python binding.
"""

from pathlib import Path

import cffi

DECLARATIONS = """
typedef struct nvlist nvlist_t;
typedef struct nvpair nvpair_t;
typedef unsigned int uint_t;
typedef int boolean_t;

int nvlist_alloc(nvlist_t **list, uint_t flags, int kmflag);
void nvlist_free(nvlist_t *list);
int nvlist_add_boolean(nvlist_t *list, const char *name);
int nvlist_add_boolean_value(nvlist_t *list, const char *name, boolean_t value);
int nvlist_add_string(nvlist_t *list, const char *name, const char *value);
int nvlist_add_uint64(nvlist_t *list, const char *name, uint64_t value);
nvpair_t *nvlist_next_nvpair(nvlist_t *list, nvpair_t *pair);
char *nvpair_name(nvpair_t *pair);
int nvpair_type(nvpair_t *pair);
int nvpair_value_boolean_value(nvpair_t *pair, boolean_t *value);
int nvpair_value_int32(nvpair_t *pair, int32_t *value);
int nvpair_value_int64(nvpair_t *pair, int64_t *value);
int nvpair_value_uint64(nvpair_t *pair, uint64_t *value);
int nvpair_value_string(nvpair_t *pair, const char **value);
int nvpair_value_nvlist(nvpair_t *pair, nvlist_t **value);

int libzfs_core_init(void);
void libzfs_core_fini(void);
int lzc_create(const char *name, int type, nvlist_t *properties, uint8_t *key, uint_t key_length);
int lzc_clone(const char *name, const char *origin, nvlist_t *properties);
int lzc_snapshot(nvlist_t *snapshots, nvlist_t *properties, nvlist_t **errors);
int lzc_destroy(const char *name);
int lzc_destroy_snaps(nvlist_t *snapshots, boolean_t defer, nvlist_t **errors);
int lzc_hold(nvlist_t *holds, int cleanup_fd, nvlist_t **errors);
int lzc_rename(const char *source, const char *target);
int lzc_promote(const char *name, char *conflict, int length);
boolean_t lzc_exists(const char *name);
int lzc_sync(const char *pool, nvlist_t *arguments, nvlist_t **result);
int lzc_send(const char *snapshot, const char *from, int fd, int flags);
int lzc_receive(const char *snapshot, nvlist_t *properties, const char *origin, boolean_t force, boolean_t raw, int fd);
int lzc_channel_program_nosync(
    const char *pool, const char *program, uint64_t instructions, uint64_t memory, nvlist_t *arguments,
    nvlist_t **result);
"""

HERE = Path(__file__).parent


def generate() -> str:
    ffi = cffi.FFI()
    ffi.set_source("cowshed_driver_zfs._abi", None)
    ffi.cdef(DECLARATIONS)
    target = HERE / "build" / "_abi.py"
    target.parent.mkdir(exist_ok=True)
    ffi.emit_python_code(str(target))
    return target.read_text()


if __name__ == "__main__":
    (HERE / "src/cowshed_driver_zfs/_abi.py").write_text(generate())
