"""Plain data out of pickle files, without ever running what they say.

A pickle is a program: loading one from strangers runs their code. This reader is not a pickle loader. It
interprets the few operations that build dictionaries, lists, texts and numbers, and refuses the file at the
first other one: no names are looked up, nothing is called, so that there is nothing to escape from. Made for
caption files of older data sets; facts: CPython `Lib/pickletools.py`.
"""

import pickletools
from typing import Any

from mmfast.errors import BadRecordError

MAX_PICKLE_BYTES = 16 * 1024 * 1024

_MARK = object()
_TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_PLAIN_VALUES = frozenset((*_TEXTS, *_NUMBERS))
_WITHOUT_EFFECT = frozenset(("PROTO", "FRAME"))


def read_restricted_pickle(content: bytes) -> Any:
    """The value of a pickle made of dict (with text keys or numbers), list, str, int and float only.

    Raises:
        BadRecordError: reason `pickle_refused` for any other type, `record_broken` for damage,
            `record_too_long` above 16 MiB.
    """
    if len(content) > MAX_PICKLE_BYTES:
        raise BadRecordError("record_too_long", f"a pickle is over {MAX_PICKLE_BYTES:,} bytes")
    try:
        return _interpret(content)
    except BadRecordError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BadRecordError("record_broken", f"the pickle is damaged: {error!r}") from error


def _interpret(content: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for operation, argument, _ in pickletools.genops(content):
        name = operation.name
        if name in _PLAIN_VALUES:
            # Protocols 0 and 1 write booleans as INT; they are no data that we admit.
            if isinstance(argument, bool):
                raise _refused("bool")
            stack.append(argument)
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "DICT":
            stack.append(_dict_of({}, _pop_to_mark(stack)))
        elif name == "LIST":
            stack.append(_pop_to_mark(stack))
        elif name == "SETITEMS":
            items = _pop_to_mark(stack)
            _dict_of(_top(stack, dict), items)
        elif name == "SETITEM":
            value, key = _pop(stack), _pop(stack)
            _dict_of(_top(stack, dict), [key, value])
        elif name == "APPENDS":
            items = _pop_to_mark(stack)
            _top(stack, list).extend(items)
        elif name == "APPEND":
            item = _pop(stack)
            _top(stack, list).append(item)
        elif name == "MEMOIZE":
            memo[len(memo)] = _top(stack, object)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(argument)] = _top(stack, object)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
        elif name == "STOP":
            value = _pop(stack)
            if stack:
                raise ValueError("it holds more than one value")
            return value
        elif name not in _WITHOUT_EFFECT:
            raise _refused(name)
    raise ValueError("it has no end")


def _refused(what: str) -> BadRecordError:
    return BadRecordError(
        "pickle_refused",
        f"the pickle holds more than dict, list, str, int and float ({what}); it may run code when it is "
        "loaded. Convert such captions to .txt or .json where you trust them",
    )


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    items: list[Any] = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _pop(stack: list[Any]) -> Any:
    value = _top(stack, object)
    del stack[-1]
    return value


def _top(stack: list[Any], kind: type[Any]) -> Any:
    if stack[-1] is _MARK or not isinstance(stack[-1], kind):
        raise TypeError(f"a {kind.__name__} was expected, found {type(stack[-1]).__name__}")
    return stack[-1]


def _dict_of(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise ValueError("a key has no value")
    target.update(zip(items[::2], items[1::2], strict=True))
    return target
