"""Sequences whose items are read from disk as asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

T = TypeVar("T")


class Indexed(Sequence[T]):
    """A sequence by its length and `at`; a slice is a list of what it names."""

    @abstractmethod
    def at(self, index: int) -> T:
        """The item at `index`, which counts from 0 and is in range."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        wanted = range(len(self))[index]
        return self.at(wanted) if isinstance(wanted, int) else [self.at(i) for i in wanted]
