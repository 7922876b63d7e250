"""Frozen records without importing dataclasses (13 ms with inspect): type checkers see dataclasses."""

__all__ = ["field", "record"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass as record
    from dataclasses import field
else:

    class _Field:
        def __init__(self, make, shown):
            self.make, self.shown = make, shown

    def field(*, default=None, default_factory=None, repr=True):
        return _Field(default_factory or (lambda: default), repr)

    def _make(cls):
        names = tuple(cls.__dict__.get("__annotations__", ()))  # noqa: RUF063 - inspect costs 10 ms
        defaults = {n: cls.__dict__[n] for n in names if n in cls.__dict__}
        body = {k: v for k, v in cls.__dict__.items() if k not in names and k not in ("__dict__", "__weakref__")}
        setters = []

        def __init__(self, *args, **kwargs):
            if len(args) > len(names):
                raise TypeError(f"{cls.__name__} takes {len(names)} values")
            for set_, value in zip(setters, args, strict=False):
                set_(self, value)
            for name, set_ in zip(names[len(args) :], setters[len(args) :], strict=True):
                if name in kwargs:
                    set_(self, kwargs.pop(name))
                elif name in defaults:
                    value = defaults[name]
                    set_(self, value.make() if type(value) is _Field else value)
                else:
                    raise TypeError(f"{cls.__name__}: {name} is missing")
            if kwargs:
                raise TypeError(f"{cls.__name__}: unknown {sorted(kwargs)}")

        def frozen(self, name, value):
            raise AttributeError(f"{cls.__name__} is frozen")

        def values(self):
            return tuple(getattr(self, n) for n in names)

        body.update(__slots__=names, __init__=__init__, __setattr__=frozen, __match_args__=names)
        shown = [n for n in names if getattr(defaults.get(n), "shown", True)]
        body.setdefault(
            "__repr__", lambda self: f"{cls.__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in shown)})"
        )
        if "__eq__" not in body:
            body["__eq__"] = lambda a, b: type(a) is type(b) and values(a) == values(b)
            body["__hash__"] = lambda a: hash(values(a))
        new = type(cls)(cls.__name__, cls.__bases__, body)
        setters.extend(new.__dict__[n].__set__ for n in names)
        return new

    def record(cls=None, **_):
        return _make if cls is None else _make(cls)
