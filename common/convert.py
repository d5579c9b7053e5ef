"""JSON <-> attrs classes, strictly: a wrong type is an error that names the field, never a silent cast."""

from enum import StrEnum
from typing import Any, TypeVar

import orjson
from cattrs import Converter, transform_error

T = TypeVar("T")


class Malformed(ValueError):
    """A body that does not have the shape of the class it should be: one sentence per fault."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


def _strict(kinds: tuple[type, ...], name: str) -> Any:
    def check(value: Any, _: type) -> Any:
        if type(value) not in kinds:
            raise TypeError(f"expected {name}, got {type(value).__name__}")
        return value

    return check


def strict_converter() -> Converter:
    """A converter that refuses `"1"` for 1, 1 for True and True for 1. Unknown keys are ignored."""
    converter = Converter(detailed_validation=True)
    converter.register_structure_hook(str, _strict((str,), "a string"))
    converter.register_structure_hook(int, _strict((int,), "an integer"))
    converter.register_structure_hook(bool, _strict((bool,), "true or false"))
    converter.register_structure_hook(float, lambda v, _: float(_strict((int, float), "a number")(v, float)))
    # The hook for `str` would take its subclasses, too, and let any text pass as an enumeration.
    converter.register_structure_hook(StrEnum, lambda value, cls: cls(value))
    return converter


_CONVERTER = strict_converter()


def structure(data: Any, cls: type[T]) -> T:
    """`data`, as parsed from JSON, as a `cls`.

    :raises Malformed: with every fault and where it is.
    """
    try:
        return _CONVERTER.structure(data, cls)
    except Exception as error:
        # cattrs raises groups as well as bare errors here; anything it raises is the data's fault.
        raise Malformed(transform_error(error, path="$")) from error


def loads(body: bytes, cls: type[T]) -> T:
    """A JSON body as a `cls`.

    :raises Malformed: not JSON, or of another shape.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed([f"not JSON: {error}"]) from error
    return structure(data, cls)


def dumps(value: Any) -> bytes:
    """An attrs object (or plain data) as compact JSON."""
    return orjson.dumps(_CONVERTER.unstructure(value))
