"""Every case of the suite by number, with what it is about; which of them are tested elsewhere or wait, and why."""

from __future__ import annotations

_TABLE = """\
P01 entry point loads; name in the object equals the entry-point name
P02 declared API version is accepted; a newer major is refused with a clear message, others still load
P03 a plug-in that raises at import, probe or open is listed with its traceback and stops nothing else
P04 two plug-ins of one name: both named in the error, neither wins
P05 a driver object with __len__==0 / __bool__ False still works
P06 probe leaves nothing: mount table, file tree, loop and mapped devices as before
P07 probe on an unsuitable file system says unusable with ≥ 1 reason and remedy; open then refuses likewise
P08 probe run twice, and by two processes at once, gives the same answer
P09 each option of the schema: default valid, documented, wrong type refused, unknown name refused with a hint
P10 option marked creation-only cannot change on an existing store
P11 declared capabilities are internally consistent (e.g. quota meaning ⇔ set_quota present)
P12 missing helper tool (PATH emptied) → probe names the tool, no traceback
P13 open on an empty root, an existing one, another driver's (refused), one with stray files (kept)
L01 a base layer is empty, mode 0755, owner as asked; a child's root keeps all attributes of its parent's root
L02 child shows parent's content; parent unchanged after writes in child
L03 commit freezes: mounts of a committed layer are read-only
L04 a committed layer mounts read-only, even for root: every change fails with EROFS
L05 read-only mount of a base, of a deep layer, of an active layer; of nothing: NotFound
L06 prepare on an active parent refused; on missing parent NotFound
L07 the same id and arguments again: same result, no second object; another user's name is refused
L08 commit to a used name, of a committed, of a missing layer: the right error; the active one is gone afterwards
L09 committed layer found under the new name only
L10 remove twice succeeds; remove unknown succeeds or NotFound as the interface says
L11 remove with children refused, lists them; succeeds after children go
L12 remove a middle layer after its child is removed; siblings unaffected
L13 an active layer that is mounted anywhere is not removed: InUse names the holder, nothing is lost
L14 remove after commit of the same key; reuse of key after remove is a clean layer
L15 list yields exactly the live layers, with stable order and kinds
L16 list during concurrent create/remove never yields half-made layers
L17 info: kind, parent, created, driver data survive close and reopen
L18 close twice harmless; use after close raises a typed error
L19 max-length id, ids with every permitted character; forbidden ids refused (.., /, NUL, newline)
L20 ids and names that differ in case do not collide
L21 depth 1, 2, 42, 43, 127, 128 layers: read file of each layer, write in top
L22 depth = declared max mounts; max+1 refused before mount with typed TooDeep
L23 depth with longest ids and deep root path (> 1 page of options)
L24 wide: 500 children of one parent
L25 reopen in a new process gives the same view (no in-memory truth)
L26 root path with space, comma, colon, backslash, unicode, link, slash at the end: works or is refused at open
L27 rebase: commit onto parent given later equals ordinary order
C01 append to a lower file, first and last bytes right
C02 4-byte write in the middle of a large lower file
C03 truncate lower to 0, to longer (zeros), to shorter
C04 delete a lower file; still gone two layers up; recreated with new content
C05 delete lower directory; recreate same name: old children not seen (opaque)
C06 recreate/delete nested directories 10 deep through three layers
C07 replace file by directory, directory by file, either by symlink, by fifo, by device
C08 rename file from lower; rename over existing lower file
C09 rename of a lower directory: success or EXDEV exactly as the capability says
C10 rename directory made in upper; rename back and forth; rename into deleted lower's name
C11 RENAME_EXCHANGE and RENAME_NOREPLACE: result or errno as declared
C12 chmod/chown/utimes of lower file change only metadata in child; parent untouched
C13 setuid, setgid, sticky kept on copy-up; cleared on write as the kernel rules say
C14 security.capability kept on copy-up by chmod and lost on write as on a plain fs
C15 user.* attributes set, listed, removed across layers; trusted.* as declared; the driver's own not leaked
C16 POSIX ACL, default ACL inherited
C17 large xattr (up to fs limit): same or declared limit
C18 hard link made in a child to a lower file: link count and data after a write, or the declared break
C19 lower hard links, write through one: other keeps old/new per capability
C20 symlinks: dangling, absolute, to parent, 4095 bytes, chain; lower symlink replaced by dir
C21 special files: fifo, socket, devices; character device 0:0 refused or kept as declared
C22 names: 255 bytes, non-UTF-8, newline, .wh.x made by a user, leading dash, pairs in case and normal form
C23 sparse 1 GiB file with one block in parent: child write does not fill holes
C24 shared mapping of a lower file: written bytes are seen; mapped before the copy-up it is as declared
C25 fd opened read-only before copy-up vs after: documented staleness matches capability
C26 st_dev/st_ino stable over copy-up and remount as declared
C27 getcwd in a directory copied up or removed
C28 flock/OFD lock on lower file, then copy-up
C29 directory with 100,000 entries: list, delete half, list
C30 O_DIRECT, fallocate, O_TMPFILE and linkat, copy_file_range, FICLONE: result or errno as declared
D01 no change → empty list, empty tar, same digest each time
D02 add, modify, delete each reported once with right kind
D03 same size and same mtime, other content: detected
D04 only mtime (ns), only mode, only owner, only xattr, only ACL changed: reported
D05 read-only touch, atime change, open for write without writing: not reported
D06 write then restore identical bytes: reported or not per changes_exact
D07 nested deletion: one whiteout for the top, none for its children
D08 directory replaced: opaque or whiteout+add, applying gives equal tree
D09 sibling names a, a-b, a/b when a goes
D10 file ↔ directory ↔ symlink ↔ device replacement
D11 parents of a changed path included with right metadata, unchanged parents not falsely "modified"
D12 empty file, empty directory
D13 hard links: unmodified; linked before modified; added third name; removed one of three
D14 rename of file and of whole subtree → whiteout + full add
D15 swap of two names; cycle of three
D16 deleted-and-recreated inode number (btrfs, zfs reuse) seen as replaced
D17 nested subvolume/dataset/mount point inside the layer: refused, skipped or included as declared
D18 sockets skipped, fifos and devices kept
D19 names and link targets over 100 and 255 bytes, files over 8 GiB, large uids, times before 1970: pax right
D20 the driver's private names and attributes never leak into an archive
D21 redirect_dir/metacopy/xwhiteout upper: diff right or falls back, never an empty file
D22 native diff == naive diff over 1,000 random trees (Hypothesis)
D23 diff against parent, grand-parent, unrelated layer, nothing
D24 diff of a live (mounted, being written) layer: consistent snapshot or refusal as declared
D25 tar reproducible across runs, drivers and hosts: same bytes for same tree (SOURCE_DATE_EPOCH clamp)
D26 diff_size equals real size of diff content
D27 diff cancelled half-way leaves no mount, thread, temp file
A01 apply(diff(A,B)) on A equals B in every attribute (mode, owner, ns mtime, xattr, links, sparse)
A02 merge law: apply(A, diff(A,B)) == B for random pairs, and across two different drivers
A03 whiteouts (through the mount and straight into a diff tree): plain, opaque, of missing files, beside an add
A04 whiteout of root, of parent, with .., through symlink, of .: refused or harmless
A05 symlink break-outs: absolute, up-and-out, chained, slash-ended, override directory, empty name
A06 hard-link break-outs: relative, absolute, up-and-out, to symlink, chmod after
A07 symlink swapped under the extractor by another process (race)
A08 duplicate entries in tar: last wins; file then dir of same name
A09 junk: truncated, bad checksum, trailing data, bombs, every compression: typed error, no layer left
A10 entries without parent directories, which keep what they have below; parents later with metadata
A11 device nodes without privilege: declared behaviour
A12 directory mtimes right after children written
A13 ENOSPC and EDQUOT during apply: typed NoSpace, layer gone, space back
A14 cancellation during apply: nothing left
A15 wrong digest/size of stream: never committed
A16 parallel apply of sibling layers, and of chain with rebase: same digest as serial
M01 mounts() is pure and constant: called 10 times, no change in mount table
M02 returned mounts mount, unmount, mount again, in a private namespace
M03 mount twice at two targets at once: sees same writes or refused as declared
M04 recursive use under rslave/rprivate/rshared parents: no leak into other namespaces
M05 lazy unmount by someone else, and foreign unmount: detected, state right
M06 file system full of stale mounts from a previous crash: cleaned at open
M07 extra mount options accepted only from the schema; nodev,nosuid,noexec honoured
M08 SELinux context on root, dirs and files of the mount
M09 bind of a sub-path of the layer
M10 mount in user namespace
M11 error from a failed mount carries kernel text and the options
M12 busy on unmount: holder pids and namespaces reported
I01 layer made with map shows mapped owner; parent unmapped untouched
I02 two containers, one image, two disjoint maps at once
I03 diff of mapped layer is in container ids
I04 parent dirs owners right with map
I05 ids outside map: EOVERFLOW/nobody as declared, never root
I06 map with several ranges, with holes, of one id, full 2^32
I07 idmapped mount used when declared: no new inodes on disk (usage constant)
I08 chown fallback keeps caps, suid, xattr, times, hard links
I09 chown fallback interrupted then retried gives right owners
I10 remove, diff, check of mapped layers
Q01 half the limit writes; then going over fails with EDQUOT/ENOSPC; file system still usable after delete
Q02 the suite's own check: a driver that ignores quota fails Q01
Q03 a limit counts only the layer's own bytes, else the declared total
Q04 quota not inherited by child, or as declared
Q05 raise, lower, lower below use, remove the limit live
Q06 inode limit
Q07 sparse, reflinked and deleted-while-open files charged as declared
Q08 a container cannot lift or escape its limit
Q09 remove frees quota object (qgroup, project id)
Q10 project ids not reused while old files remain; not shared by two stores on one fs
Q11 usage of empty layer small; after 10 MiB random write 10 MiB ± declared error; after delete back
Q12 usage excludes parents; sum of exclusive ≤ real space used
Q13 usage inodes ≥ 0 or None, never −1
Q14 driver off: never changes file-system-wide quota state it did not set
N01 32 threads create/mount/write/unmount/remove distinct layers
N02 32 creates of one user name through the engine: one wins, 31 AlreadyExists
N03 create child while parent is removed: one of two legal results
N04 two processes on one store: lock or refuse, never corrupt
N05 remove while diff runs: waits, refuses or diff errors; never partial success
N06 usage, list, info during all above return promptly (< 1 s)
N07 fork in another thread while mounting: no fd leak into children (CLOEXEC)
N08 commit concurrent with writes: content is a prefix-consistent state as declared
N09 cancellation at random moments, then full check clean
N10 100 mount/umount cycles: no growth in mounts, loops, dm, fds, memory
N11 slow helper (SIGSTOP on the tool): time-out error, then recovery after SIGCONT
N12 many processes prepare, commit and remove while two purge: no living layer is touched
X01 kill -9 at every step of each changing call, then reopen: old or new state
X02 as X01 at random times, 200 rounds, timed against a measured baseline
X03 power cut: what was committed with durability is complete
X04 power cut without durability: a layer is complete or reported broken, never silently cut short
X05 EIO on read of one lower file: error to reader, check names file and layer
X06 EIO/ENOSPC on each write of metadata (fault-injecting fs or tool shim): rollback
X07 ENOSPC on pool data, and on pool metadata: typed NoSpace, no hang, reads and removes still work
X08 helper killed, missing, failing in another language, printing rubbish: typed error
X09 EBUSY on remove for some tries, then free: retried or deferred, and purged later
X10 stale temp/trash from old crash purged at open, live one of another process kept
X11 metadata file truncated to 0 / garbage: open refuses with rescue hint, or rebuilds
X12 object exists that metadata does not know: found by check, not silently reused
X13 metadata knows object that is gone: found; removal succeeds
X14 reboot simulation: all mounts, loops, dm mappings gone; every layer usable again
X15 clock set back a day between operations: no wrong diff, no GC of new layers
X16 base object swapped for another of same name (pool UUID): refused
R01 purge is resumable: killed half-way through 10,000 files, finishes next time
R02 immutable-flag files, mode-000 dirs, read-only subvolumes, nested subvolumes removed
R03 one undeletable layer does not stop others; is reported each time
R04 after the removal of all layers the space is back within 1 %, and no object of any kind is left
R05 check clean on a fresh store, on a busy store, on store while containers run
R06 check finds content, mode, attributes changed, files missing and added in committed layers
R07 check finds: image without layer, container without image, layer unreferenced
R08 check finds leaked objects of the driver (subvolume, quota group, dataset, thin id, device, loop, mount, project)
R09 check in quick mode O(layers), deep mode reads content; both cancel and resume
R10 repair of each finding makes the next check clean and touches nothing else; a dry run tells what is done
R11 rebuild a damaged layer from its blob in place with children mounted/unmounted as declared
R12 store reopened read-only lists and exports everything
R13 rebuild metadata from back end alone: same layers, parents, kinds
V01 image chain converted: same diff-ids, same tree digests
V02 container layer converted with content, owners, quota
V03 kill -9 at each step; resume; source intact until accept
V04 roll back after accept period
V05 loss report: features the target lacks are listed before (xattr, hard link, depth, quota)
V06 target too small: refused before start, or stops clean
V07 incremental: second run copies only new layers
V08 convert while containers run: refused or copies consistent
V09 A→B→A gives identical digests
H01 each capability claimed is exercised; each denied is checked to be refused with Unsupported
H02 no test skips without machine-readable reason; skip count is part of the result
H03 drivers with one fault each: every one fails at least one named case
H04 random operations against a model in memory, with a shrunk counter-example and the seed
H05 suite leaves host as found: mounts, loops, dm, users, quota state
H06 the suite passes from installed packages on a plug-in out of tree, with no source checkout
H07 the engine's public command line on each driver
H08 order of the cases shuffled, and repeated: same results
H09 result file has kernel, fs, mount options, tool versions, driver version, suite version, seed
H10 time budget per case; over-run is a failure with stack of the driver's threads
S01 init twice gives the same StoreId; open with another one → WrongStore; open never makes anything
S02 file system not mounted, or another mounted there: WrongStore, nothing touched
S03 root moved or bind-mounted elsewhere: opens
S04 other uid, other id map, newer format, older engine: refused with directions
S05 destroy takes away all that init and layers made, and nothing of another store beside it
S06 two stores on one pool, file system, name space of devices: neither sees the other's objects
S07 restored older database over a newer back end: found, numbers not reused
S08 open and scan with 10,000 layers: within the stated budget, memory bounded
S09 close() never disturbs another process that has the store open
U01 remove and commit are refused while a namespace, a detached mount, or a descriptor holds the layer
U02 holder named: pid, container, namespace
U03 after kill -9 of the holder the layer can be removed, devices and datasets are free
U04 a second writable mount is never made; the second user gets a clone and sees the same writes
U05 activation: the device goes with the last mount, whoever dies; activation while a deferral is pending
U06 host reboot simulated with a layer in use
U07 cp, export, diff and size of running and stopped containers see the right tree and leave no mount
U08 unmount and remove under load, 1,000 rounds: no EBUSY reaches a user
J01 each operation, each named step, kill: the next command redoes or undoes, two processes at once included
J02 half-extracted layer never committed
J03 committed, not durable, other boot id → suspect, realised again from its blob
J04 disk full with the database on it: ps answers (marked stale), rm and prune work, nothing is lost
J05 two processes repeat one dead operation: one does, both return the same
J06 exit status, log and record of a container survive a full disk and a locked database
B01 probe tells overlay with and without userxattr apart by the mkdir-over-whiteout test
B02 the whole core level as a plain user, where it is claimed
B03 purge of foreign-id files
B04 device nodes, trusted.* refused as declared
B05 another id map → WrongStore
B06 ps, inspect, logs without entering the namespace
W01 snapshot, clone, roll back of a volume equal trees
W02 a volume's snapshot under writes is consistent as declared
W03 volume in two containers
W04 quota on a volume
W05 growth of depth is refused with a remedy before the limit
"""
TITLES = dict(line.split(" ", 1) for line in _TABLE.splitlines())

_CORE, _OWN = "core/tests/storage/test_registry.py::", "tests/conformance/tests/"
# Numbers without a case in this package. code: suite (its own tests), engine (the engine's tests), issue (waits for a
# command that is not there yet); then the test, or what is waited for.
ELSEWHERE: dict[str, tuple[str, str]] = {
    "P03": ("engine", f"{_CORE}test_every_broken_driver_is_listed_with_its_reason_and_stops_nobody"),
    "P04": ("engine", f"{_CORE}test_two_claims_of_a_name_are_both_shown_and_neither_is_taken"),
    "Q02": ("suite", f"{_OWN}test_mutants.py::test_a_fault_is_caught_by_its_cases_and_by_no_other"),
    "H02": ("suite", f"{_OWN}test_running.py::test_a_skip_without_a_code_fails_the_run"),
    "H03": ("suite", f"{_OWN}test_mutants.py::test_a_fault_is_caught_by_its_cases_and_by_no_other"),
    "H06": (
        "suite",
        f"{_OWN}test_running.py::test_H06_installed_packages_on_a_plug_in_out_of_tree_without_a_source_checkout",
    ),
    "H08": ("suite", f"{_OWN}test_running.py::test_H08_the_order_of_the_cases_changes_no_result"),
    "H09": ("suite", f"{_OWN}test_running.py::test_a_run_reports_each_case_with_what_it_ran_on"),
    "H10": ("suite", f"{_OWN}test_running.py::test_a_case_that_hangs_fails_and_shows_where"),
}

# What the letters of the numbers are about.
AREAS = {
    "P": "Probing and options", "L": "Life and names of layers", "C": "Content, copied on write",
    "D": "Changes and their archives", "A": "Archives applied", "M": "Mounts", "I": "Mapped ids",
    "Q": "Usage and limits", "N": "Several at once", "X": "Crashes and faults", "R": "Removal, check, repair",
    "V": "Conversion between drivers", "H": "Honesty, of drivers and of the suite", "S": "The store",
    "U": "Layers in use", "J": "The engine's journal", "B": "Plain users", "W": "Volumes",
}  # fmt: skip
