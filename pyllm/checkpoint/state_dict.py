"""Reads the pickle of a torch state dict without the pickle module: it interprets the opcodes torch.save writes.

Nothing is imported or called. A global is only a name, compared with the few that rebuild tensors; others are refused.
Input bounds all work: a limit on opcodes, no recursion, no sizes taken on trust.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .mapped import MAX_DIMS, MAX_TENSORS, is_count

MAX_OPCODES = 64 * MAX_TENSORS  # a tensor takes about 40

# Storage classes and dtypes of torch -> safetensors' names.
STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "ComplexFloatStorage": "C64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "UntypedStorage": "",
}
TORCH_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "complex64": "C64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
REBUILDERS = {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_parameter"}
ALLOWED = (
    REBUILDERS
    | {"collections.OrderedDict", "torch.Size", "torch.storage.UntypedStorage"}
    | {f"torch.{name}" for name in (*STORAGES, *TORCH_DTYPES)}
)


class StateDictError(ValueError):
    """What is wrong with the pickle, as half a sentence."""


@dataclass(frozen=True)
class Global:
    """A name that a pickle would import."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A storage of the archive: entry data/<key>; `count` elements of `dtype`, or bytes where dtype is ''."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A strided tensor in a storage; offset and strides in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


MARK = object()


def read_state_dict(data: bytes) -> dict[str, StoredTensor]:
    """Name -> tensor. Raises StateDictError."""
    value = _Machine(data).run()
    if not isinstance(value, dict):
        raise StateDictError(f"a state dict maps names to tensors, it holds a {_kind(value)}")
    wrong = [f"{name!r:.80} ({_kind(item)})" for name, item in value.items() if not isinstance(item, StoredTensor)]
    if wrong:
        more = ", ..." if len(wrong) > 5 else ""
        raise StateDictError(f"a state dict maps names to tensors, these are not: {', '.join(wrong[:5])}{more}")
    if len(value) > MAX_TENSORS:
        raise StateDictError(f"it has {len(value)} tensors, at most {MAX_TENSORS} are read")
    return value


def _kind(value: object) -> str:
    return f"reference to {value.name:.80}" if isinstance(value, Global) else type(value).__name__


class _Machine:
    """One run over the opcodes of `data`."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            code = self.take(1)
            if code == b".":
                return self.pop()
            operation = OPCODES.get(code[0])
            if operation is None:
                raise StateDictError(f"opcode {code!r} at byte {self.at - 1} is none of those torch writes")
            operation(self)
        raise StateDictError(f"it takes more than {MAX_OPCODES} opcodes")

    def take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        if len(taken) != count:
            raise StateDictError("it ends early")
        self.at += count
        return taken

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self, size: int) -> str:
        try:
            return self.take(size).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise StateDictError(f"a string at byte {self.at} is not UTF-8") from None

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 1000)
        if end < 0:
            raise StateDictError("a name does not end")
        line = self.text(end - self.at)
        self.at += 1
        return line

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is MARK:
            raise StateDictError("a value is missing from its stack")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while self.stack:
            item = self.stack.pop()
            if item is MARK:
                return items[::-1]
            items.append(item)
        raise StateDictError("a mark is missing from its stack")

    def put(self, index: int) -> None:
        value = self.pop()
        self.push(value)
        self.memo[index] = value

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise StateDictError(f"it recalls value {index}, which it never stored")
        self.push(self.memo[index])

    def long1(self) -> None:
        size = self.number("<B")
        if size > 9:
            raise StateDictError(f"it has an integer of {size} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def find_global(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise StateDictError("it names a global by something that is not text")
        full = f"{module}.{name}"
        if full not in ALLOWED:
            raise StateDictError(f"it wants to load {full!r:.120}, which tensors do not need; nothing of it was run")
        self.push(Global(full))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.find_global(module, name)

    def set_items(self, items: list[Any]) -> None:
        target = self.pop()
        if not isinstance(target, dict) or len(items) % 2:
            raise StateDictError("it sets items of something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise StateDictError(f"a state dict is keyed by strings, it has a {_kind(key)}")
            if key in target:
                raise StateDictError(f"{key!r:.80} appears twice")
            target[key] = value
        self.push(target)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def append(self, items: list[Any]) -> None:
        target = self.pop()
        if not isinstance(target, list):
            raise StateDictError("it appends to something that is not a list")
        target.extend(items)
        self.push(target)

    def build(self) -> None:
        """Attributes of an OrderedDict (`_metadata` of modules): versions that no tensor depends on."""
        self.pop()
        target = self.pop()
        if not isinstance(target, dict):
            raise StateDictError(f"it sets attributes of a {_kind(target)}")
        self.push(target)

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise StateDictError(f"it calls a {_kind(function)}")
        self.push(_call(function.name, arguments))

    def persistent_id(self) -> None:
        value = self.pop()
        if not isinstance(value, tuple) or len(value) != 5 or value[0] != "storage" or not isinstance(value[1], Global):
            raise StateDictError("it refers to something that is not a storage")
        kind, key, count = value[1].name.rpartition(".")[2], value[2], value[4]
        if kind not in STORAGES or not isinstance(key, str) or not is_count(count):
            raise StateDictError("a storage is not described by class, key and number of elements")
        self.push(Storage(STORAGES[kind], key, count))


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    """What the allowed global `name` returns for `arguments`."""
    if name == "collections.OrderedDict":
        if arguments not in ((), ([],)):
            raise StateDictError("it builds an OrderedDict from arguments")
        return {}
    if name == "torch.Size" and len(arguments) == 1 and isinstance(arguments[0], tuple):
        return arguments[0]
    if name == "torch._utils._rebuild_parameter" and len(arguments) == 3 and isinstance(arguments[0], StoredTensor):
        return arguments[0]
    if name == "torch._utils._rebuild_tensor_v2" and len(arguments) in (6, 7):
        return _rebuild_tensor(arguments[:4], arguments[5], "")
    if name == "torch._utils._rebuild_tensor_v3" and len(arguments) in (7, 8) and isinstance(arguments[6], Global):
        return _rebuild_tensor(arguments[:4], arguments[5], TORCH_DTYPES.get(arguments[6].name.rpartition(".")[2], ""))
    raise StateDictError(f"it calls {name} in a way torch does not")


def _rebuild_tensor(arguments: tuple[Any, ...], hooks: object, dtype: str) -> StoredTensor:
    storage, offset, shape, strides = arguments
    if not isinstance(storage, Storage) or not is_count(offset):
        raise StateDictError("a tensor has no storage or no offset")
    for name, numbers in (("shape", shape), ("strides", strides)):
        if not isinstance(numbers, tuple) or len(numbers) > MAX_DIMS or not all(map(is_count, numbers)):
            raise StateDictError(f"a tensor must have {name} of at most {MAX_DIMS} non-negative integers")
    if len(shape) != len(strides) or not (dtype or storage.dtype):
        raise StateDictError("a tensor's shape, strides and dtype do not fit together")
    if hooks != {} and hooks is not None:
        raise StateDictError("a tensor has backward hooks, weights need none")
    return StoredTensor(storage, dtype or storage.dtype, offset, shape, strides)


def _protocol(machine: _Machine) -> None:
    version = machine.number("<B")
    if not 2 <= version <= 5:
        raise StateDictError(f"it is a pickle of protocol {version}")


OPCODES: dict[int, Callable[[_Machine], None]] = {
    ord("\x80"): _protocol,
    ord("\x95"): lambda m: m.number("<Q"),  # FRAME: a hint about buffering
    ord("("): lambda m: m.push(MARK),
    ord("}"): lambda m: m.push({}),
    ord("]"): lambda m: m.push([]),
    ord(")"): lambda m: m.push(()),
    ord("N"): lambda m: m.push(None),
    ord("\x88"): lambda m: m.push(True),
    ord("\x89"): lambda m: m.push(False),
    ord("K"): lambda m: m.push(m.number("<B")),
    ord("M"): lambda m: m.push(m.number("<H")),
    ord("J"): lambda m: m.push(m.number("<i")),
    ord("G"): lambda m: m.push(m.number(">d")),
    ord("\x8a"): _Machine.long1,
    ord("X"): lambda m: m.push(m.text(m.number("<I"))),
    ord("\x8c"): lambda m: m.push(m.text(m.number("<B"))),
    ord("t"): lambda m: m.push(tuple(m.pop_to_mark())),
    ord("\x85"): lambda m: m.push((m.pop(),)),
    ord("\x86"): lambda m: m.push((m.pop(), m.pop())[::-1]),
    ord("\x87"): lambda m: m.push((m.pop(), m.pop(), m.pop())[::-1]),
    ord("q"): lambda m: m.put(m.number("<B")),
    ord("r"): lambda m: m.put(m.number("<I")),
    ord("\x94"): lambda m: m.put(len(m.memo)),
    ord("h"): lambda m: m.get(m.number("<B")),
    ord("j"): lambda m: m.get(m.number("<I")),
    ord("c"): lambda m: m.find_global(m.line(), m.line()),
    ord("\x93"): _Machine.stack_global,
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.pop_to_mark()),
    ord("s"): _Machine.set_item,
    ord("u"): lambda m: m.set_items(m.pop_to_mark()),
    ord("b"): _Machine.build,
    ord("R"): _Machine.reduce,
    ord("Q"): _Machine.persistent_id,
}
