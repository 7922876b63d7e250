"""Frozen records and enumerations without dataclasses (13 ms with inspect) and enum (4 ms with functools, for each
command): type checkers see those of the standard library."""

__all__ = ["Enum", "IntEnum", "field", "record"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass as record
    from dataclasses import field
    from enum import Enum, IntEnum
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

    class _Names(type):
        """The public names of a class's body become its members: Kind.ACTIVE, Kind("active"), list(Kind)."""

        def __new__(meta, name, bases, body):
            given = {k: v for k, v in body.items() if k[0] != "_" and not hasattr(v, "__get__")}
            cls = super().__new__(meta, name, bases, {k: v for k, v in body.items() if k not in given})
            cls.__members__ = {}
            for key, value in given.items():
                member = int.__new__(cls, value) if issubclass(cls, int) else object.__new__(cls)
                member.__dict__.update(name=key, value=value)
                type.__setattr__(cls, key, member)
                cls.__members__[key] = member
            return cls

        def __call__(cls, value):
            for member in cls.__members__.values():
                if value is member or value == member.value:
                    return member
            raise ValueError(f"{value!r} is no {cls.__name__}")

        def __getitem__(cls, name):
            return cls.__members__[name]

        def __iter__(cls):
            return iter(cls.__members__.values())

        def __len__(cls):
            return len(cls.__members__)

    class Enum(metaclass=_Names):
        def __setattr__(self, name, value):
            raise AttributeError(f"{self!r} is frozen")

        def __repr__(self):
            return f"<{type(self).__name__}.{self.name}: {self.value!r}>"

        def __reduce__(self):
            return type(self), (self.value,)

    class IntEnum(int, Enum):
        def __str__(self):
            return str(self.value)
