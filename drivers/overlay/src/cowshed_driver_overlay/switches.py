"""The behaviour switches of overlay, and what follows from them (Documentation/filesystems/overlayfs.rst).

Every switch is said at every mount: distributions build kernels with defaults of their own, and a module parameter
changes them at run time, while what lies in a store was written under one setting.
"""

from __future__ import annotations

from cowshed.storage import api
from cowshed.storage.errors import BadOption

MAX_LAYERS = 500  # OVL_MAX_STACK: lower directories of one mount


def prefix(*, user_attributes: bool) -> str:
    """Where overlay keeps its own extended attributes."""
    return "user.overlay." if user_attributes else "trusted.overlay."


def switches(options: api.Options, *, user_attributes: bool) -> tuple[tuple[str, str | None], ...]:
    """What every mount of the store says. Raises BadOption for what the kernel refuses together."""
    redirects, metacopy = options["redirect_dir"] == "on", options["metacopy"] == "on"
    if metacopy and not redirects:
        raise BadOption("option metacopy of driver overlay needs redirect_dir=on too", remedy="set both or neither")
    if user_attributes:
        if redirects or options["index"] == "on":
            raise BadOption(
                "options redirect_dir, metacopy and index of driver overlay need the trusted.* attributes of a root "
                "outside user namespaces",
                remedy="leave them off",
            )
        # With userxattr the kernel takes no redirects and no metacopy; saying "off" to them is allowed.
        return ("userxattr", None), ("redirect_dir", "nofollow"), ("metacopy", "off"), *_common(options)
    return (
        ("redirect_dir", "on" if redirects else "nofollow"),
        ("metacopy", str(options["metacopy"])),
        *_common(options),
    )


def _common(options: api.Options) -> tuple[tuple[str, str | None], ...]:
    return ("index", str(options["index"])), ("xino", str(options["xino"])), ("nfs_export", "off")


def capabilities(
    options: api.Options, *, user_attributes: bool, durable: bool = True, quota: bool = False, exact: bool = False
) -> api.Capabilities:
    """What a store with these options can. durable: the place survives a power cut (tmpfs does not); quota: the file
    system limits what a project uses (`cowshed.storage.kit.projects`); exact: and copies share nothing with what is
    below."""
    redirects, metacopy = options["redirect_dir"] == "on", options["metacopy"] == "on"
    plain = not redirects and not metacopy  # the upper directory alone tells what a layer changed
    return api.Capabilities(
        granularity=api.Granularity.FILE,
        max_depth=MAX_LAYERS,
        durability=api.Durability.COMMIT if durable else api.Durability.NONE,
        diff_tree=plain,
        quota=api.QuotaScope.OWN if quota else api.QuotaScope.NONE,
        quota_inodes=quota,
        rebase=plain,
        self_check=True,
        rename_lower_directory=redirects,
        hard_links_survive_copy_up=options["index"] == "on",
        inodes_stable=False,
        stale_reads_after_copy_up=True,
        char_0_0_visible=False,
        shared_page_cache=True,
        idmapped_mounts=True,
        selinux=True,
        rootless=plain and options["index"] == "off",
        lost_xattrs=(prefix(user_attributes=user_attributes),),
        usage_exact=exact,
    )
