"""The doors for tests: events on demand, the state of everything, the rate of the traffic. No authentication.

POST …/events   {"mailbox": address, "kind": EWS element name, "count": n}   -> {"events": [ledger lines]}
POST …/traffic  {"rate": events a second}                                    -> {"rate": …}
GET  …/state                                                                 -> see `state`
POST …/rights   {"mailbox": address, …}          -> {"rights": …}; see RightsOrder
POST …/groups   {"address": …, "members": [address, …]}, or null for no group  -> {"groups": {address: [member]}}
POST …/faults   {"kind": …, its parameters}      one fault now       -> {"made": [ledger lines]}, empty if it waits
                {"kind": …, "at" or "per_minute": …}  later          -> {"made": []}; times count from now
                {"profile": name}                a profile from now  -> {"made": []}; none: no more faults, what
                                                                        lasts ends at once
GET  …/faults   what can be broken, and what was                     -> see `faults`
"""

from collections import Counter
from random import Random
from typing import Annotated, Any

import msgspec

from listener.simulator.directory import Member
from listener.simulator.exchange import Exchange
from listener.simulator.fault_effects import Unfit
from listener.simulator.fault_plans import MOMENTS, PROFILES, parse_entry
from listener.simulator.faults import KINDS as FAULTS
from listener.simulator.faults import FaultError, about, did_you_mean, parameters, parse
from listener.simulator.http import Reply
from listener.simulator.ledger import Line
from listener.simulator.mailstore import KINDS
from listener.simulator.traffic import Traffic, make


class EventsOrder(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST events."""

    mailbox: str
    kind: str
    count: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1


class TrafficOrder(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST traffic. `rate` is in events a second."""

    rate: Annotated[float, msgspec.Meta(ge=0)]


class RightsOrder(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST rights. What is left out stays as it is.

    `folders` are those of the mailbox that `account` (the service account, if it is not given) may read without
    impersonation, by their distinguished ids, "*" for all. `in_scope` says whether the service account may
    impersonate the mailbox, `ews` whether its owner may use EWS at all, `free_busy` whether *Default* sees its
    calendar and free/busy times.
    """

    mailbox: str
    folders: list[str] | None = None
    account: str | None = None
    in_scope: bool | None = None
    ews: bool | None = None
    free_busy: bool | None = None


class GroupOrder(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST groups."""

    address: str
    members: list[str] | None


class _NotFound(Exception):  # noqa: N818
    pass


class Control:
    """Answers requests below the control URL; `path` is what follows it, `events` for one."""

    def __init__(self, exchange: Exchange, traffic: Traffic, rng: Random) -> None:
        self._exchange = exchange
        self._traffic = traffic
        self._rng = rng

    def handle(self, method: str, path: str, body: bytes, now: float) -> Reply:
        """The reply, in JSON; 400, 404 and 409 say in `error` what is wrong."""
        try:
            match method, path.strip("/"):
                case "POST", "events":
                    order = msgspec.json.decode(body, type=EventsOrder)
                    return _json(200, {"events": self.events(order, now)})
                case "POST", "traffic":
                    self._traffic.set_rate(msgspec.json.decode(body, type=TrafficOrder).rate)
                    return _json(200, {"rate": self._traffic.rate})
                case "POST", "rights":
                    return _json(200, {"rights": self.give(msgspec.json.decode(body, type=RightsOrder))})
                case "POST", "groups":
                    return _json(200, {"groups": self.gather(msgspec.json.decode(body, type=GroupOrder))})
                case "GET", "state":
                    return _json(200, self.state())
                case "POST", "faults":
                    wanted = msgspec.json.decode(body, type=dict[str, Any])
                    return _json(200, {"made": self.make_faults(wanted, now)})
                case "GET", "faults":
                    return _json(200, self.faults())
        except FaultError as error:
            return _json(400, {"error": str(error)})
        except Unfit as error:
            return _json(409, {"error": str(error)})
        except msgspec.DecodeError as error:
            return _json(400, {"error": str(error)})
        except _NotFound as error:
            return _json(404, {"error": str(error)})
        return _json(404, {"error": f"{method} {path} is not known here"})

    def events(self, order: EventsOrder, now: float) -> list[Line]:
        """Make genuine changes that hold `count` events of the kind; every event that they make is told."""
        mailbox = self._exchange.directory.find(order.mailbox)
        if mailbox is None:
            raise _NotFound(f"no mailbox {order.mailbox!r}")
        if order.kind not in KINDS:
            raise _NotFound(f"no event kind {order.kind!r}; there are {', '.join(KINDS)}")
        lines: list[Line] = []
        for _ in range(order.count):
            lines += self._exchange.publish(make(mailbox, order.kind, self._rng, now))
        return lines

    def give(self, order: RightsOrder) -> dict[str, Any]:
        """Give rights or take them away; all rights afterwards."""
        directory = self._exchange.directory
        mailbox = directory.find(order.mailbox)
        if mailbox is None:
            raise _NotFound(f"no mailbox {order.mailbox!r}")
        rights = directory.rights
        if order.folders is not None:
            account = order.account or self._exchange.settings.user
            rights.grant(account.lower(), mailbox.address, order.folders)
        for wanted, refused in (
            (order.in_scope, rights.out_of_scope),
            (order.ews, rights.without_ews),
            (order.free_busy, rights.without_free_busy),
        ):
            if wanted is not None:
                (refused.discard if wanted else refused.add)(mailbox.address)
        return rights.told()

    def gather(self, order: GroupOrder) -> dict[str, list[str]]:
        """Make, change or delete a distribution group; all groups afterwards."""
        directory, address = self._exchange.directory, order.address.lower()
        if order.members is None:
            directory.groups.pop(address, None)
        else:
            directory.groups[address] = tuple(Member(each.strip().lower()) for each in order.members)
        return {name: [member.address for member in found] for name, found in directory.groups.items()}

    def make_faults(self, order: dict[str, Any], now: float) -> list[Line]:
        """One fault now, or a plan that starts now. FaultError: it makes no sense. Unfit: it befalls nothing."""
        chaos = self._exchange.chaos
        if "profile" in order:
            profile = str(order["profile"])
            if profile not in PROFILES or len(order) > 1:
                raise FaultError(f'unknown profile "{profile}"{did_you_mean(profile, PROFILES)}')
            if profile == "none":
                chaos.stop()
            else:
                chaos.begin(PROFILES[profile], now)
        elif order.keys() & MOMENTS:
            chaos.begin([parse_entry(order)], now)
        else:
            return chaos.order(parse(order), now)
        return []

    def faults(self) -> dict[str, Any]:
        """The kinds of faults with their parameters, the profiles, and what Chaos.state tells."""
        kinds = [
            {"kind": name, "about": about(kind), "parameters": parameters(kind)}
            for name, kind in FAULTS.items()
        ]
        return {"kinds": kinds, "profiles": list(PROFILES), **self._exchange.chaos.state()}

    def state(self) -> dict[str, Any]:
        """What there is right now. `generated` counts the changes in the ledger, `faults` the faults, `queued` the
        events that are not written to any stream yet; `mailboxes_subscribed` and `mailboxes_streaming` count
        mailboxes, not subscriptions. `authentication` is what Gate.state tells."""
        exchange = self._exchange
        requests: dict[str, dict[str, int]] = {}
        for (operation, status), count in sorted(exchange.requests.items()):
            requests.setdefault(operation, {})[str(status)] = count
        homes = Counter(exchange.directory.home(mailbox) for mailbox in exchange.directory)
        subscriptions = list(exchange.subscriptions)
        return {
            "mailboxes": exchange.settings.mailboxes,
            "rate": self._traffic.rate,
            "generated": exchange.ledger.count,
            "faults": exchange.ledger.faults,
            "queued": exchange.subscriptions.queued(),
            "subscriptions": len(subscriptions),
            "mailboxes_subscribed": len({s.mailbox for s in subscriptions}),
            "mailboxes_streaming": len({s.mailbox for s in subscriptions if s.stream}),
            "backends": [
                {"name": name, "mailboxes": homes[name], "subscriptions": len(table)}
                for name, table in exchange.subscriptions.tables.items()
            ],
            "streams": [
                {"backend": stream.backend, "account": stream.account, "ids": len(stream.subscriptions)}
                for stream in exchange.streams
            ],
            "hanging": exchange.budgets.charges(),
            "requests": requests,
            "authentication": exchange.gate.state(),
        }


def _json(status: int, value: object) -> Reply:
    return Reply(status, msgspec.json.encode(value) + b"\n", content_type="application/json")
