"""Subscribes and unsubscribes the mailboxes of one group, and tests whether a mailbox can be read."""

from __future__ import annotations

from functools import partial
from math import inf

import msgspec
import structlog
import trio

from listener.catchup.queries import GONE
from listener.ews.codes import ExchangeError, Failure, Verdict, crash
from listener.ews.folders import get_folder, read_get_folder
from listener.ews.subscription import read_subscribe, read_unsubscribe, subscribe, unsubscribe
from listener.exchange.auth.lockout import MAILBOX_REFUSAL_CODES
from listener.exchange.client import ExchangeClient
from listener.groups.actions import Denied, Subscribe, Subscribed, Unsubscribe
from listener.groups.group_context import GroupContext

log = structlog.get_logger()


class Subscriber:
    """The subscription requests of one group.

    - `new_ids`: ids that the running Subscribe has created so far, by mailbox.
    - `specs`: the fingerprint of the subscription spec that each mailbox was subscribed with.
    - `unreadable`: mailboxes that could not be read. Their next Subscribe is followed by a test.
    """

    def __init__(self, context: GroupContext) -> None:
        self.new_ids: dict[str, str] = {}
        self.specs: dict[str, str] = {mailbox: context.spec.of(mailbox) for mailbox, _ in context.state.live}
        self.unreadable: set[str] = set()
        self._context = context
        self._testing: set[str] = set()

    def take_over(self, crashed: Subscriber) -> None:
        """Continue with what the subscriber of a crashed runner knew."""
        self.specs |= crashed.specs
        self.unreadable |= crashed.unreadable

    async def subscribe(self, action: Subscribe) -> Subscribed:
        """Subscribe the mailboxes, and return when the new subscriptions are in the checkpoint."""
        ids: list[tuple[str, str]] = []
        refused: list[tuple[str, Failure]] = []
        todo = list(reversed(action.mailboxes))
        context = self._context

        async def try_one(mailbox: str, anchor: str = action.anchor) -> None:
            try:
                await self._subscribe_one(mailbox, anchor, ids)
            except ExchangeError as error:
                refused.append((mailbox, error.failure))
            except Exception as error:  # it concerns this mailbox only
                log.error("mailbox.crashed", group=context.group.name, mailbox=mailbox, exc_info=error)
                refused.append((mailbox, crash(error)))

        async def worker() -> None:
            # When the server asks for a pause, the rest stays untried: the group continues with it after the pause.
            while todo and not any(failure.wait for _, failure in refused):
                await try_one(todo.pop())

        if action.from_anchor:
            context.client.forget_cookies()
            # The response for the anchor sets the cookie that sends the others to the same back end.
            await try_one(todo.pop())
            if todo and refused and refused[0][1].code in MAILBOX_REFUSAL_CODES and not refused[0][1].wait:
                # The refusal may concern the anchor only: another mailbox shows whether the account is accepted.
                await try_one(todo[-1], todo.pop())
                if ids:
                    await try_one(refused.pop(0)[0])
            if not ids:
                return Subscribed((), tuple(refused))
        async with trio.open_nursery() as nursery:
            for _ in range(min(context.spec.subscribe_concurrency, len(todo))):
                nursery.start_soon(worker)
        # The membership is durable before the stream is opened, so that a crash leaves a known gap.
        try:
            await context.registry.save_checkpoint(context.group)
        except Exception as error:
            # The subscriptions exist nevertheless. The next change saves them.
            log.error("group.checkpoint_failed", group=context.group.name, exc_info=error)
        return Subscribed(tuple(ids), tuple(refused))

    async def _subscribe_one(self, mailbox: str, anchor: str, ids: list[tuple[str, str]]) -> None:
        """Subscribe one mailbox and add its SubscriptionId to `ids`. Raises ExchangeError."""
        context = self._context
        access, spec = context.spec.access.of(mailbox), context.spec.of(mailbox)
        body = subscribe(
            version=context.spec.version,
            impersonate=access.impersonate,
            events=context.spec.events,
            folders=access.folders,
        )
        id_ = await context.client.call(body, context.headers(anchor), read_subscribe)
        if access.kind == "delegate" or mailbox in self.unreadable:
            # Some servers subscribe a delegate to folders that it has no rights on, and then report nothing.
            if (denial := await self._test_access(mailbox, anchor)) is not None:
                await self._unsubscribe_one(mailbox, id_, anchor, context.client)
                raise ExchangeError(denial)
            self.unreadable.discard(mailbox)
        ids.append((mailbox, id_))
        context.gaps.subscribed(mailbox, trio.current_time())
        self.new_ids[mailbox], self.specs[mailbox] = id_, spec
        context.disowned.discard(id_)
        context.registry.claim(context.group, id_, mailbox)
        context.registry.changed(context.group)
        context.log.debug("mailbox.subscribed", mailbox=mailbox, subscription_id=id_)

    async def unsubscribe(self, action: Unsubscribe, client: ExchangeClient) -> None:
        """Unsubscribe in parallel and within seconds while the group stops; otherwise one after another."""
        todo = list(action.subscriptions)
        context = self._context
        stopping = context.state.stopping

        async def worker() -> None:
            while todo:
                mailbox, id_ = todo.pop()
                if context.registry.owner(context.group, id_) is not None and not stopping:
                    continue  # a server that restarted has given this id to another mailbox
                await self._unsubscribe_one(mailbox, id_, action.anchor, client)

        with trio.move_on_after(context.spec.unsubscribe_timeout if stopping else inf):
            async with client, trio.open_nursery() as nursery:
                for _ in range(min(context.spec.subscribe_concurrency if stopping else 1, len(todo))):
                    nursery.start_soon(worker)

    async def _unsubscribe_one(self, mailbox: str, id_: str, anchor: str, client: ExchangeClient) -> None:
        """Unsubscribe one mailbox. A failure does not matter: a subscription that is not read expires."""
        context = self._context
        try:
            access = context.spec.access.of(mailbox)
            body = unsubscribe(id_, version=context.spec.version, impersonate=access.impersonate)
            await client.call(body, context.headers(anchor), read_unsubscribe)
        except ExchangeError as error:
            context.log.debug("mailbox.unsubscribe_failed", mailbox=mailbox, code=error.failure.code)
        except Exception as error:
            log.error("mailbox.crashed", group=context.group.name, mailbox=mailbox, exc_info=error)

    def start_check_access(self, mailbox: str) -> None:
        """Test in a task whether a mailbox can be read, and suspend it if not. Return at once."""
        nursery = self._context.nursery
        if nursery is not None and mailbox not in self._testing:
            self._testing.add(mailbox)
            nursery.start_soon(self._check_access, mailbox)

    async def _check_access(self, mailbox: str) -> None:
        context = self._context
        try:
            denial = await self._test_access(mailbox, context.state.anchor)
        except ExchangeError:
            denial = None  # the next comparison asks again
        except Exception as error:
            log.error("mailbox.crashed", group=context.group.name, mailbox=mailbox, exc_info=error)
            denial = crash(error)
        finally:
            self._testing.discard(mailbox)
        if denial is not None:
            self.unreadable.add(mailbox)
            context.post(Denied(mailbox, denial))

    async def _test_access(self, mailbox: str, anchor: str) -> Failure | None:
        """Return why none of the mailbox's folders can be read; None if at least one can.

        Raises ExchangeError if the server does not answer the question now.
        """
        context = self._context
        access = context.spec.access.of(mailbox)
        refs = access.folders or (access.folder("inbox"),)
        body = get_folder(refs, id_only=True, version=context.spec.version, impersonate=access.impersonate)
        try:
            answers = await context.client.call(
                body, context.headers(anchor), partial(read_get_folder, folders=refs)
            )
        except ExchangeError as error:
            if _is_denial(error.failure):
                return _denial(error.failure)
            raise
        denials = [each for each in answers.values() if isinstance(each, Failure) and _is_denial(each)]
        return _denial(denials[0]) if len(denials) == len(refs) else None


# Codes that mean that a mailbox or folder does not exist, or that the account has no right to it.
_DENIED = GONE | {"ErrorAccessDenied"}


def _is_denial(failure: Failure) -> bool:
    return failure.verdict is Verdict.SUSPEND or failure.code in _DENIED


def _denial(failure: Failure) -> Failure:
    """Return the failure under a code that suspends the mailbox."""
    if failure.verdict is Verdict.SUSPEND:
        return failure
    return msgspec.structs.replace(failure, code="ErrorFolderNotFound")
