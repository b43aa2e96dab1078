"""Read and write the pickles of Python 2 in which CIFAR is published, without executing anything.

A pickle is a small program, and the standard reader runs whatever it names. Here the few instructions that data files
need are carried out, the few functions that rebuild NumPy arrays are replaced by records of what they were given, and
everything else is refused. No allocation is larger than the file that asks for it.
"""

import io
import pickle
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from trainyard_shared.errors import DataError

# The largest file of CIFAR, the training set of CIFAR-100, has 155 MB.
MAX_FILE_BYTES = 1 << 30
DTYPES = {"u1": np.uint8, "i8": np.int64, "i4": np.int32, "i2": np.int16, "i1": np.int8}

Value = str | int | list[Any] | np.ndarray


def read(path: Path) -> dict[str, Value]:
    """Return the dictionary in the file, with text keys: texts, integers, lists and NumPy arrays.

    Understands the original files and what `pickle.dump` writes today for the same content, in protocols 2 to 5.
    """
    size = path.stat().st_size
    if not 0 < size <= MAX_FILE_BYTES:
        raise DataError(f"{path} has {size:,} bytes: not a CIFAR file, which have 1 byte to {MAX_FILE_BYTES:,}.")
    stream = io.BytesIO(path.read_bytes())
    reader = _DataUnpickler(stream, path)
    try:
        content = reader.load()
        if not isinstance(content, dict):
            raise DataError(f"{path} holds a {type(content).__name__}, expected a dictionary.")
        content = {_plain(key): _plain(value) for key, value in content.items()}
    except DataError:
        raise
    except KeyError as error:
        raise DataError(
            f"{path} ({size:,} bytes) is damaged or no CIFAR file: it has the instruction or reference {error} near "
            f"byte {stream.tell():,}, which no CIFAR file has."
        ) from error
    except Exception as error:
        # A damaged pickle can fail in any way at all.
        raise DataError(
            f"{path} ({size:,} bytes) is damaged or no CIFAR file: {type(error).__name__}: {error}"
        ) from error
    if rest := stream.read(1):
        raise DataError(f"{path} has data after its end ({rest!r} at byte {stream.tell() - 1:,} of {size:,}).")
    return content


class _Array:
    """An array as the pickle describes it."""

    shape: Any = None
    dtype: Any = None
    raw: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, self.shape, self.dtype, fortran_order, self.raw = state
        if fortran_order:
            raise ValueError("array in Fortran order")

    def to_numpy(self) -> np.ndarray:
        if not isinstance(self.dtype, _Dtype) or not isinstance(self.raw, bytes):
            raise ValueError("array without plain numbers")
        if self.dtype.byte_order not in ("<", "|", "="):
            raise ValueError(f"byte order {self.dtype.byte_order!r}")
        # Fails unless the bytes are exactly those of the shape.
        return np.frombuffer(self.raw, DTYPES[self.dtype.code]).reshape(self.shape)


class _Dtype:
    """A dtype as the pickle describes it."""

    def __init__(self, code: object, *_flags: object):
        self.code = _plain(code)
        self.byte_order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = str(_plain(state[1]))


def _reconstruct(*_args: object) -> _Array:
    return _Array()


def _frombuffer(raw: object, dtype: object, shape: object, order: object, axis_order: object = None) -> _Array:
    if axis_order is not None:
        raise ValueError("array with permuted axes")
    array = _Array()
    array.__setstate__((1, shape, dtype, order not in ("C", b"C"), raw))
    return array


def _encode(text: object, encoding: object) -> bytes:
    """Python 3 spells bytes like this in protocol 2."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise ValueError("text in another encoding than latin1")
    return text.encode("latin1")


NDARRAY = object()  # named in the pickles as an argument, never called
GLOBALS: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}
for _core in ("numpy.core", "numpy._core"):
    GLOBALS[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    GLOBALS[f"{_core}.numeric", "_frombuffer"] = _frombuffer


class _DataUnpickler(pickle._Unpickler):
    """The reference implementation in Python, whose table of instructions can be cut down.

    The one in C cannot, and a file of a few bytes can make it allocate gigabytes (a memo index of 2**31, say).
    """

    # Set by the base class.
    stack: list[Any]
    read: Callable[[int], bytes]
    append: Callable[[object], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, stream: io.BytesIO, path: Path):
        super().__init__(stream, encoding="bytes")
        self.path = path

    def find_class(self, module: str, name: str) -> object:
        try:
            return GLOBALS[module, name]
        except KeyError:
            raise DataError(
                f"{self.path} asks to load {module}.{name}, which no CIFAR file needs. It may be an attack: it was "
                "not loaded. Use the original files."
            ) from None

    def _set_items(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._set_item(target, key, value)

    def _set_one_item(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._set_item(self.stack[-1], key, value)

    @staticmethod
    def _set_item(target: object, key: object, value: object) -> None:
        # Hashing a tuple that is nested deeply enough overflows the stack of the interpreter.
        if type(target) is not dict or type(key) not in (bytes, str):
            raise ValueError("only texts can be keys, of dictionaries")
        target[key] = value

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        # The standard instruction also sets attributes of functions.
        if type(target) not in (_Array, _Dtype):
            raise ValueError("state for something that has none")
        target.__setstate__(state)

    def _load_bytes(self) -> None:
        """Protocol 5 wraps the bytes of arrays in a bytearray, whose standard reader allocates before it reads."""
        (length,) = struct.unpack("<Q", self.read(8))
        if length > MAX_FILE_BYTES:
            raise ValueError(f"{length:,} bytes in one value")
        raw = self.read(length)
        if len(raw) != length:
            raise EOFError("the file ends within an array")
        self.append(raw)

    _DATA = (
        "PROTO FRAME STOP MARK EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS NONE "
        "NEWTRUE NEWFALSE BININT BININT1 BININT2 SHORT_BINSTRING BINSTRING BINUNICODE SHORT_BINUNICODE BINBYTES "
        "SHORT_BINBYTES BINBYTES8 BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE"
    )
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **{getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _DATA.split()},
        pickle.SETITEM[0]: _set_one_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.BUILD[0]: _build,
        pickle.BYTEARRAY8[0]: _load_bytes,
    }


def _plain(value: object) -> Any:
    """Turn what the unpickler collected into ordinary values; texts of Python 2 arrive as bytes."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, list):
        return [_plain(item) for item in value] if value and isinstance(value[0], bytes) else value
    if isinstance(value, _Array):
        return value.to_numpy()
    return value


def write(path: Path, content: Mapping[str, Value]) -> None:
    """Write the dictionary as Python 2 would have, instruction by instruction.

    Text must be ASCII of at most 255 characters, integers 0 to 65,535, arrays of uint8 with two dimensions.
    """
    writer = _Py2Writer()
    for key, value in content.items():
        writer.text(key)
        writer.value(value)
    path.write_bytes(writer.finish())


class _Py2Writer:
    def __init__(self) -> None:
        self.pieces = [pickle.PROTO + b"\x02" + pickle.EMPTY_DICT]
        self.num_memoized = 0
        self.memoize()
        self.pieces.append(pickle.MARK)

    def memoize(self) -> None:
        """Number a value as Python 2 did, though nothing here refers back to one."""
        self.num_memoized += 1
        index = self.num_memoized
        short = index < 256
        self.pieces.append(pickle.BINPUT + bytes([index]) if short else pickle.LONG_BINPUT + struct.pack("<I", index))

    def value(self, value: Value) -> None:
        if isinstance(value, str):
            self.text(value)
        elif isinstance(value, int):
            self.pieces.append(_integer(value))
        elif isinstance(value, list):
            self.items(value)
        else:
            self.array(value)

    def text(self, text: str) -> None:
        encoded = text.encode("ascii")
        self.pieces.append(pickle.SHORT_BINSTRING + bytes([len(encoded)]) + encoded)
        self.memoize()

    def items(self, values: Sequence[str | int]) -> None:
        self.pieces.append(pickle.EMPTY_LIST)
        self.memoize()
        for start in range(0, len(values), 1000):
            self.pieces.append(pickle.MARK)
            for value in values[start : start + 1000]:
                self.value(value)
            self.pieces.append(pickle.APPENDS)

    def array(self, array: np.ndarray) -> None:
        if array.dtype != np.uint8 or array.ndim != 2:
            raise ValueError(f"array of {array.dtype} with {array.ndim} dimensions")
        rows, columns = array.shape
        unset = pickle.BININT + struct.pack("<i", -1)
        text = pickle.SHORT_BINSTRING
        raw = array.tobytes()
        for memoized in (
            pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n",
            pickle.GLOBAL + b"numpy\nndarray\n",
            _integer(0) + pickle.TUPLE1 + text + b"\x01b" + pickle.TUPLE3 + pickle.REDUCE,
            pickle.MARK + _integer(1) + _integer(rows) + _integer(columns) + pickle.TUPLE2
            + pickle.GLOBAL + b"numpy\ndtype\n",
            text + b"\x02u1" + _integer(0) + _integer(1) + pickle.TUPLE3 + pickle.REDUCE,
        ):  # fmt: skip
            self.pieces.append(memoized)
            self.memoize()
        self.pieces += [
            pickle.MARK + _integer(3) + text + b"\x01|" + pickle.NONE * 3 + unset + unset + _integer(0) + pickle.TUPLE,
            pickle.BUILD + pickle.NEWFALSE + pickle.BINSTRING + struct.pack("<I", len(raw)),
            raw,
            pickle.TUPLE + pickle.BUILD,
        ]

    def finish(self) -> bytes:
        return b"".join([*self.pieces, pickle.SETITEMS, pickle.STOP])


def _integer(value: int) -> bytes:
    return pickle.BININT1 + bytes([value]) if value < 256 else pickle.BININT2 + struct.pack("<H", value)
