"""Writes src/cowshed_driver_devicemapper/_abi.py: `python drivers/devicemapper/abi.py`.

cffi's out-of-line ABI mode, as in linux/abi.py: no compiler, no headers of libdevmapper, and an import of 1 ms. The
declarations are those of libdevmapper.h that have been the same since 1.02.111 (2015). A test holds the generated file
to this one.
"""

from pathlib import Path

import cffi

DECLARATIONS = """
struct dm_task;
struct dm_versions { uint32_t next; uint32_t version[3]; char name[1]; };
struct dm_names { uint64_t dev; uint32_t next; char name[1]; };
struct dm_info {
    int exists; int suspended; int live_table; int inactive_table; int32_t open_count; uint32_t event_nr;
    uint32_t major; uint32_t minor; int read_only; int32_t target_count; int deferred_remove; int internal_suspend;
};
struct dm_task *dm_task_create(int type);
void dm_task_destroy(struct dm_task *task);
int dm_task_set_name(struct dm_task *task, const char *name);
int dm_task_set_uuid(struct dm_task *task, const char *uuid);
int dm_task_set_ro(struct dm_task *task);
int dm_task_set_sector(struct dm_task *task, uint64_t sector);
int dm_task_set_message(struct dm_task *task, const char *message);
int dm_task_set_cookie(struct dm_task *task, uint32_t *cookie, uint16_t flags);
int dm_task_add_target(
    struct dm_task *task, uint64_t start, uint64_t size, const char *kind, const char *parameters);
int dm_task_deferred_remove(struct dm_task *task);
int dm_task_run(struct dm_task *task);
int dm_task_get_errno(struct dm_task *task);
int dm_task_get_info(struct dm_task *task, struct dm_info *info);
struct dm_versions *dm_task_get_versions(struct dm_task *task);
struct dm_names *dm_task_get_names(struct dm_task *task);
void *dm_get_next_target(
    struct dm_task *task, void *next, uint64_t *start, uint64_t *length, char **kind, char **parameters);
int dm_get_library_version(char *version, size_t size);
int dm_driver_version(char *version, size_t size);
void dm_udev_set_sync_support(int sync_with_udev);
void dm_log_with_errno_init(void *function);
void dm_lib_release(void);
int getpid(void);
"""

HERE = Path(__file__).parent


def generate() -> str:
    ffi = cffi.FFI()
    ffi.set_source("cowshed_driver_devicemapper._abi", None)
    ffi.cdef(DECLARATIONS)
    target = HERE / "build" / "_abi.py"
    target.parent.mkdir(exist_ok=True)
    ffi.emit_python_code(str(target))
    return target.read_text()


if __name__ == "__main__":
    (HERE / "src/cowshed_driver_devicemapper/_abi.py").write_text(generate())
