"""Kerberos tickets that several threads use."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any, TypeVar

from listener.exchange.auth.kerberos import ERRORS

T = TypeVar("T")


class Ticket:
    """The ticket for one service, in the context that got it. One thread at a time asks the KDC: where that refuses
    the password, the others must not send it once more each."""

    def __init__(self) -> None:
        self._held: tuple[str | None, Any] | None = None  # with the password that it was got by
        self._asking = Lock()
        self._told = 0  # answers of the KDC
        self._refused: Exception | None = None

    def use(self, password: str | None, make: Callable[[], Any], step: Callable[[Any], T]) -> T:
        """What `step` makes of a context with the ticket: of a copy of the one held, else of one that `make` makes.

        Blocks. Raises as they do, and what they have just raised in another thread that asked with the same aim.
        """
        told, held = self._told, self._held
        if held is not None and held[0] == password:
            with suppress(*ERRORS):  # the ticket has ended: a new one is got
                return step(held[1].new_context())
        with self._asking:
            if self._told != told:
                if self._refused is not None:
                    raise self._refused
                if self._held is not None and self._held[0] == password:
                    return step(self._held[1].new_context())
            self._held = self._refused = None
            try:
                context = make()
                made = step(context)
            except Exception as error:
                self._refused = error
                raise
            finally:
                self._told += 1
            self._held = password, context
            return made
