"""Handshakes by pyspnego. Its steps may ask DNS or a KDC, so they are made in threads."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import trio
from spnego.channel_bindings import GssChannelBindings
from spnego.exceptions import SpnegoError

from listener.errors import ExchangeError
from listener.ews.codes import Failure
from listener.ews.xml import excerpt

T = TypeVar("T")
Refusal = Callable[[bytes | None, SpnegoError | None], Failure]

# What pyspnego raises for a token that it cannot read.
UNREADABLE = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    NotImplementedError,
    struct.error,
)

# A KDC that does not answer must not take the threads of others.
_threads = trio.CapacityLimiter(8)


async def in_thread(work: Callable[[], T]) -> T:
    """Runs it in a thread; whoever is cancelled meanwhile does not wait for its end."""
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=_threads)


class SpnegoHandshake:
    """A handshake by one context of pyspnego. `legs` tokens of ours prove who we are. `refusal` makes a failure of
    the channel binding, and of what the mechanism made of the server's last words."""

    def __init__(self, context: Any, header: str, legs: int, refusal: Refusal) -> None:
        self.header = header
        self._context = context
        self._legs = legs
        self._refusal = refusal
        self._made = 0
        self._first: bytes | None = None
        self._told: SpnegoError | None = None

    @property
    def shown(self) -> bool:
        return self._made >= self._legs

    @property
    def one_leg(self) -> bool:
        return self._legs == 1

    def prepared(self, token: bytes | None) -> SpnegoHandshake:
        """With its first token, which was made already."""
        self._first = token
        return self

    async def step(self, received: bytes | None, binding: bytes | None) -> bytes | None:
        if received is None and self._first is not None:
            token, self._first = self._first, None
        else:
            try:
                token = await in_thread(
                    partial(self._context.step, received, channel_bindings=bindings(binding))
                )
            except SpnegoError as error:
                if self.shown:  # what came is a refusal in the mechanism's own words
                    self._told = error
                    return None
                raise ExchangeError(Failure(code="HandshakeBroken", text=excerpt(error.message))) from error
            except UNREADABLE as error:
                text = f"the server's {self.header} token cannot be read: {excerpt(str(error))}"
                raise ExchangeError(Failure(code="HandshakeBroken", text=text)) from error
        if token is not None:
            self._made += 1
        return token

    def refused(self, binding: bytes | None) -> Failure:
        return self._refusal(binding, self._told)


def bindings(binding: bytes | None) -> GssChannelBindings | None:
    """In the form of pyspnego."""
    return None if binding is None else GssChannelBindings(application_data=binding)
