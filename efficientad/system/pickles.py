"""What a pickle in a torch file would become, counted before anything is made of it.

torch runs no code from a file, but makes whatever else the file asks for: lists that are small in the file and
endless when they are printed, tensors far larger than their numbers. Here the stream's instructions are followed
with sizes in place of values. What torch.save makes of weights, numbers and text passes; all else is refused, or,
for files of other tools, counted like the lists and dicts that it is made of.
"""

from __future__ import annotations

import math
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # Python 2's names, which torch.save writes
from typing import BinaryIO, NamedTuple

_MOST_INSTRUCTIONS = 2_000_000  # some seconds; the state of a training with 400,000 images
_DEEPEST = 20  # lists within lists
_LONGEST_INTEGER = 2**128
_ITEM_BYTES = {
    **{"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2},
    **{"Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1},
}
_STORAGES = {f"torch.{name}Storage": size for name, size in _ITEM_BYTES.items()}
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_ORDERED, _SHAPE, _BYTES = "collections.OrderedDict", "torch.Size", "_codecs.encode"
_NAMES = {*_STORAGES, _TENSOR, _PARAMETER, _ORDERED, _SHAPE, _BYTES}
_DEVICE, _COUNTER, _SET = "torch.device", "collections.Counter", "builtins.set"  # of other tools
_TYPES = {
    f"torch.{name}"
    for name in ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
}
_TORCH_REFUSES = ("os", "sys", "posix", "nt")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS_AND_TEXT = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
_ARGUMENTS = ("name", "storage", "arguments")  # what only tensors are made of, and tuples with these in them
_EMPTY = {"EMPTY_LIST": "list", "EMPTY_DICT": "dict"}


class PickleError(Exception):
    """The pickle is damaged or would become more than its file can hold; the message says why, if known."""


class UnsupportedError(PickleError):
    """The pickle need not be damaged, but holds what is not read."""


class ForeignNameError(UnsupportedError):
    """The pickle names something else than tensors and plain values; `name` is as in "module.name"."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it names {name}")
        self.name = name


class _Storage(NamedTuple):
    key: str
    numbers: int
    item_bytes: int


class _Value:
    """A value on the unpickler's stack: what it is, how many values it holds when written out, how deep it is."""

    __slots__ = ("content", "count", "depth", "is_held", "is_key", "kind")

    def __init__(self, kind: str, content: object = None) -> None:
        self.kind, self.content = kind, content  # plain, tuple, list, dict, made, tensor, object or of _ARGUMENTS
        self.count, self.depth, self.is_held = 1, 0, False
        self.is_key = kind in ("plain", "object", "foreign")  # of a dict

    def hold(self, values: list[_Value]) -> None:
        """Count the values within this one. What is held may not grow any more, as its holder counted it."""
        if self.is_held:
            raise UnsupportedError("a list or an object in it grows when it is already part of another")
        for value in values:
            if value.kind in _ARGUMENTS or value is self:
                raise UnsupportedError("it holds other things than values, or itself")
            value.is_held = True
            self.count += value.count
            self.depth = max(self.depth, value.depth + 1)
        if self.depth > _DEEPEST:
            raise UnsupportedError(f"lists in it are nested more than {_DEEPEST} deep")


class PickleScan:
    """Follows the pickles of one torch file."""

    def __init__(
        self, file_bytes: int, storage_bytes: dict[str, int] | None, foreign: dict[str, str] | None = None
    ) -> None:
        """
        Args:
            file_bytes: size of the file.
            storage_bytes: sizes of the file's storages, by their keys; None: they follow later in the file.
            foreign: takes the names of classes and functions that are not counted here, as "module.name", and
                whether what they make is filled as a "dict", a "list" or neither ("object"); they and what is made
                with them count as values. None: they are refused.
        """
        self._foreign = foreign
        self._file_bytes, self._storage_bytes = file_bytes, storage_bytes
        self._tensor_bytes = 0
        self._instructions = 0

    def read(self, file: BinaryIO) -> object:
        """Follow one pickle, up to its end; returns its value if that is a number or text, else None.

        Raises:
            PickleError
        """
        begin, value = file.tell(), None
        self._stack: list[_Value] = []
        self._marks: list[int] = []
        self._memo: dict[int, _Value] = {}
        try:
            for opcode, argument, _ in pickletools.genops(file):
                self._instructions += 1
                if self._instructions > _MOST_INSTRUCTIONS:
                    raise UnsupportedError(f"it has more than {_MOST_INSTRUCTIONS:,} values")
                if opcode.name == "STOP":
                    value = self._pop()
                else:
                    self._follow(opcode.name, argument)
        except (ValueError, IndexError, KeyError, OverflowError):  # of a damaged stream
            raise PickleError from None
        if value is None:
            raise PickleError
        if value.count > file.tell() - begin:  # every value takes a byte, unless it is shared
            raise UnsupportedError("written out, it would be many times its size")
        return value.content if value.kind == "plain" else None

    def _pop(self) -> _Value:
        if self._marks and len(self._stack) <= self._marks[-1]:
            raise PickleError
        return self._stack.pop()

    def _pop_to_mark(self) -> list[_Value]:
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def _follow(self, name: str, argument: object) -> None:
        stack = self._stack
        if name in _NUMBERS_AND_TEXT:
            if isinstance(argument, int) and abs(argument) > _LONGEST_INTEGER:
                raise UnsupportedError("it holds a number of more than 38 digits")
            stack.append(_Value("plain", argument))
        elif name in _CONSTANTS:
            stack.append(_Value("plain", _CONSTANTS[name]))
        elif name in _EMPTY:
            stack.append(_Value(_EMPTY[name]))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "GLOBAL":
            stack.append(self._name(str(argument)))
        elif name in ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            self._make_tuple(name)
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS"):
            self._fill(name)
        elif name in ("REDUCE", "BUILD", "BINPERSID", "NEWOBJ"):
            getattr(self, f"_{name.lower()}")()
        elif (name, argument) != ("PROTO", 2):
            raise UnsupportedError(f"its pickle uses {name}, which torch.save does not")

    def _name(self, name: str) -> _Value:
        """What a class or function, given as "module name", becomes on the stack."""
        module, _, name = name.partition(" ")
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        whole = f"{module}.{name}"
        if whole in _NAMES:
            return _Value("name", whole)
        if self._foreign is None or module.partition(".")[0] in _TORCH_REFUSES:
            raise ForeignNameError(whole)
        if whole in _TYPES:
            return _Value("plain")
        if whole in (_DEVICE, _COUNTER, _SET):
            return _Value("name", whole)
        self._foreign.setdefault(whole, "object")
        return _Value("foreign", whole)

    def _make_tuple(self, name: str) -> None:
        if name == "TUPLE":
            values = self._pop_to_mark()
        else:
            count = 0 if name == "EMPTY_TUPLE" else int(name[-1])
            values = [self._pop() for _ in range(count)][::-1]
        others = [value for value in values if value.kind not in _ARGUMENTS]
        made = _Value("tuple" if len(others) == len(values) else "arguments", values)
        made.hold(others)
        made.is_key = self._foreign is not None and all(value.is_key for value in values)
        self._stack.append(made)

    def _fill(self, name: str) -> None:
        values = self._pop_to_mark() if name[-1] == "S" else [self._pop() for _ in range(2 - (name == "APPEND"))]
        into, kind = self._stack[-1], "list" if name.startswith("APPEND") else "dict"
        if into.kind == "object" and self._foreign.get(into.content) in ("object", kind):
            self._foreign[into.content] = kind
        elif into.kind != kind:
            raise PickleError
        if kind == "dict":
            keys = values[::2] if name == "SETITEMS" else values[1:]
            if len(values) % 2 or not all(key.is_key for key in keys):
                raise UnsupportedError("it has keys that are neither numbers nor text")
        into.hold(values)

    def _binpersid(self) -> None:
        parts = self._arguments(self._pop())
        if [part.kind for part in parts[:2]] != ["plain", "name"] or parts[0].content != "storage":
            raise PickleError
        item_bytes = _STORAGES.get(parts[1].content)
        key, _, numbers = (part.content for part in parts[2:5])
        views = [part.content for part in parts[5:]]
        if item_bytes is None or type(key) is not str or type(numbers) is not int or views not in ([], [None]):
            raise PickleError
        there = self._file_bytes if self._storage_bytes is None else self._storage_bytes[key]
        if not 0 <= numbers * item_bytes <= there:
            raise PickleError("it claims to hold more numbers than its size allows")
        self._stack.append(_Value("storage", _Storage(key, numbers, item_bytes)))

    def _reduce(self) -> None:
        arguments, name = self._arguments(self._pop()), self._pop()
        kinds = [argument.kind for argument in arguments]
        if name.kind == "foreign":
            self._make_object(name, arguments)
            return
        if name.kind != "name":
            raise PickleError
        if name.content == _ORDERED and not kinds:
            made = _Value("dict")
        elif name.content == _TENSOR and kinds[:5] == ["storage", "plain", "tuple", "tuple", "plain"]:
            self._check_tensor(*arguments[:4])
            made = _Value("tensor")
        elif name.content == _PARAMETER and kinds[:1] == ["tensor"]:
            made = _Value("tensor")
        elif name.content in (_BYTES, _DEVICE) and kinds in (["plain"], ["plain", "plain"]):
            made = _Value("plain")
        elif (name.content, kinds) in ((_SET, ["list"]), (_COUNTER, ["dict"])):
            made = _Value("made")
            made.hold(arguments)
        elif name.content == _SHAPE and kinds == ["tuple"]:
            made = _Value("tuple", arguments[0].content)
            made.hold([arguments[0]])
        else:
            raise PickleError
        self._stack.append(made)

    def _newobj(self) -> None:
        arguments, name = self._arguments(self._pop()), self._pop()
        if name.kind != "foreign":
            raise PickleError
        self._make_object(name, arguments)

    def _make_object(self, name: _Value, arguments: list[_Value]) -> None:
        """Of a foreign class or function."""
        made = _Value("object", name.content)
        made.hold(arguments)
        self._stack.append(made)

    def _build(self) -> None:
        """The attribute _metadata of a state_dict, or all that a foreign object has."""
        attributes, of = self._pop(), self._stack[-1]
        kind = self._foreign[of.content] if of.kind == "object" else of.kind
        if kind == "list":
            raise UnsupportedError("a list in it has attributes")
        if kind != "object" and (kind != "dict" or attributes.kind != "dict"):
            raise PickleError
        of.hold([attributes])

    def _check_tensor(self, storage: _Value, offset: _Value, shape: _Value, strides: _Value) -> None:
        sizes, steps = ([part.content for part in each.content] for each in (shape, strides))
        numbers = [offset.content, *sizes, *steps]
        if len(sizes) != len(steps) or any(type(number) is not int or number < 0 for number in numbers):
            raise PickleError
        count = math.prod(sizes)
        end = offset.content + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True)) + 1
        there = storage.content.numbers
        if count and (count > there or end > there):
            raise PickleError("a tensor in it has more elements than numbers are stored")
        self._tensor_bytes += count * storage.content.item_bytes
        if self._tensor_bytes > 2 * self._file_bytes:  # tied weights share their numbers
            raise PickleError("its tensors have more elements than numbers are stored")

    @staticmethod
    def _arguments(value: _Value) -> list[_Value]:
        if value.kind not in ("tuple", "arguments"):
            raise PickleError
        return value.content
