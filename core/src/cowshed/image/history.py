"""What an image was made by, step by step (image-spec config.md, history)."""

from __future__ import annotations

from cowshed.storage.record import record
from cowshed_runtime.fastjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.state.rows import ImageRow


@record(frozen=True)
class Step:
    """One step of an image's history."""

    image_id: str  # of the newest step; "" for the others, of which nothing but the layer was kept
    created: str  # RFC 3339; "" if the image does not tell
    created_by: str
    size: int  # bytes of the layer's blob; 0 if the step made none
    comment: str
    empty: bool  # the step made no layer


def history(image: ImageRow) -> tuple[Step, ...]:
    """The steps, newest first. Layers that the configuration tells nothing of come as steps without a text."""
    entries = loads(image.config).get("history") or []
    sizes = [size for _, _, size in image.blobs]
    told: list[Step] = []
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        empty = bool(entry.get("empty_layer"))
        if not empty and not sizes:
            empty = True  # more steps than layers: the history is wrong, the layers are not
        told.append(Step("", _text(entry, "created"), _text(entry, "created_by"), 0 if empty else sizes.pop(0),
                         _text(entry, "comment"), empty))  # fmt: skip
    told += [Step("", "", "", size, "", False) for size in sizes]
    told.reverse()
    if told:
        first = told[0]
        told[0] = Step(image.id, first.created, first.created_by, first.size, first.comment, first.empty)
    return tuple(told)


def _text(entry: dict[str, object], key: str) -> str:
    value = entry.get(key)
    return value if isinstance(value, str) else ""
