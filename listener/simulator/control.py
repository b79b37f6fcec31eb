"""The control API for tests. It has no authentication.

POST …/events   {"mailbox": address, "kind": EWS element name, "count": n}   -> {"events": [ledger lines]}
POST …/traffic  {"rate": events per second}                                  -> {"rate": …}
GET  …/state                                                                 -> see `Control.state`
POST …/rights   {"mailbox": address, …}            -> {"rights": …}; see RightsRequest
POST …/groups   {"address": …, "members": [address, …]}, null deletes the group -> {"groups": {address: [member]}}
POST …/faults   {"kind": …, its parameters}        one fault now         -> {"made": [ledger lines]}, empty if pending
                {"kind": …, "at" or "per_minute": …}  later              -> {"made": []}; times count from now
                {"profile": name}                  starts a profile      -> {"made": []}; `none` cancels all faults
GET  …/faults   kinds, profiles and what happened                        -> see `Control.faults`
"""

from collections import Counter
from random import Random
from typing import Annotated, Any

import msgspec

from listener.simulator.directory import Member
from listener.simulator.exchange import Exchange
from listener.simulator.fault_effects import NoTarget
from listener.simulator.fault_plans import PROFILES, TIMING_KEYS, parse_entry
from listener.simulator.faults import KINDS as FAULTS
from listener.simulator.faults import FaultError, about, did_you_mean, parameters, parse
from listener.simulator.http import Reply
from listener.simulator.ledger import Line
from listener.simulator.mailstore import KINDS, Mailbox
from listener.simulator.traffic import Traffic, make


class EventsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST events."""

    mailbox: str
    kind: str
    count: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1


class TrafficRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST traffic. `rate` is in events per second."""

    rate: Annotated[float, msgspec.Meta(ge=0)]


class RightsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST rights. Omitted fields stay unchanged.

    `folders` are the folders (distinguished ids, "*" for all) that `account` (default: the service account)
    may read without impersonation. `in_scope`: whether the service account may impersonate the mailbox.
    `ews`: whether its owner may use EWS. `free_busy`: whether *Default* can see its calendar folder and
    free/busy times.
    """

    mailbox: str
    folders: list[str] | None = None
    account: str | None = None
    in_scope: bool | None = None
    ews: bool | None = None
    free_busy: bool | None = None


class GroupRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST groups. `members` null deletes the group."""

    address: str
    members: list[str] | None


class _NotFound(Exception):  # noqa: N818
    pass


class Control:
    """Answers requests below the control URL."""

    def __init__(self, exchange: Exchange, traffic: Traffic, rng: Random) -> None:
        self._exchange = exchange
        self._traffic = traffic
        self._rng = rng

    def handle(self, method: str, path: str, body: bytes, now: float) -> Reply:
        """Return the JSON reply. `path` is what follows the control URL, such as `events`.

        Status 400, 404 and 409 have the reason in `error`.
        """
        try:
            match method, path.strip("/"):
                case "POST", "events":
                    request = msgspec.json.decode(body, type=EventsRequest)
                    return _json(200, {"events": self.events(request, now)})
                case "POST", "traffic":
                    self._traffic.set_rate(msgspec.json.decode(body, type=TrafficRequest).rate)
                    return _json(200, {"rate": self._traffic.rate})
                case "POST", "rights":
                    return _json(
                        200, {"rights": self.set_rights(msgspec.json.decode(body, type=RightsRequest))}
                    )
                case "POST", "groups":
                    return _json(
                        200, {"groups": self.set_group(msgspec.json.decode(body, type=GroupRequest))}
                    )
                case "GET", "state":
                    return _json(200, self.state())
                case "POST", "faults":
                    wanted = msgspec.json.decode(body, type=dict[str, Any])
                    return _json(200, {"made": self.make_faults(wanted, now)})
                case "GET", "faults":
                    return _json(200, self.faults())
        except (FaultError, msgspec.DecodeError) as error:
            return _json(400, {"error": str(error)})
        except NoTarget as error:
            return _json(409, {"error": str(error)})
        except _NotFound as error:
            return _json(404, {"error": str(error)})
        return _json(404, {"error": f"unknown request: {method} {path}"})

    def events(self, request: EventsRequest, now: float) -> list[Line]:
        """Make changes that produce `count` events of the kind, and return every event that they produce."""
        mailbox = self._mailbox(request.mailbox)
        if request.kind not in KINDS:
            raise _NotFound(f"unknown event kind {request.kind!r}; known kinds: {', '.join(KINDS)}")
        lines: list[Line] = []
        for _ in range(request.count):
            lines += self._exchange.publish(make(mailbox, request.kind, self._rng, now))
        return lines

    def set_rights(self, request: RightsRequest) -> dict[str, Any]:
        """Grant or withdraw rights. Return all rights."""
        mailbox, rights = self._mailbox(request.mailbox), self._exchange.directory.rights
        if request.folders is not None:
            account = request.account or self._exchange.settings.user
            rights.grant(account.lower(), mailbox.address, request.folders)
        for wanted, refused in (
            (request.in_scope, rights.out_of_scope),
            (request.ews, rights.without_ews),
            (request.free_busy, rights.without_free_busy),
        ):
            if wanted is not None:
                (refused.discard if wanted else refused.add)(mailbox.address)
        return rights.state()

    def set_group(self, request: GroupRequest) -> dict[str, list[str]]:
        """Create, change or delete a distribution group. Return all groups."""
        directory, address = self._exchange.directory, request.address.lower()
        if request.members is None:
            directory.groups.pop(address, None)
        else:
            directory.groups[address] = tuple(Member(each.strip().lower()) for each in request.members)
        return {name: [member.address for member in found] for name, found in directory.groups.items()}

    def make_faults(self, request: dict[str, Any], now: float) -> list[Line]:
        """Make one fault now, or start a plan. Raises FaultError (invalid request) or NoTarget."""
        fault_scheduler = self._exchange.fault_scheduler
        if "profile" in request:
            profile = str(request["profile"])
            if profile not in PROFILES or len(request) > 1:
                raise FaultError(f'unknown profile "{profile}"{did_you_mean(profile, PROFILES)}')
            if profile == "none":
                fault_scheduler.stop()
            else:
                fault_scheduler.start_plan(PROFILES[profile], now)
        elif request.keys() & TIMING_KEYS:
            fault_scheduler.start_plan([parse_entry(request)], now)
        else:
            return fault_scheduler.make_now(parse(request), now)
        return []

    def faults(self) -> dict[str, Any]:
        """Return the kinds of faults with their parameters, the profiles, and FaultScheduler.state."""
        kinds = [
            {"kind": name, "about": about(kind), "parameters": parameters(kind)}
            for name, kind in FAULTS.items()
        ]
        return {"kinds": kinds, "profiles": list(PROFILES), **self._exchange.fault_scheduler.state()}

    def state(self) -> dict[str, Any]:
        """Return the current state.

        `generated` counts the changes in the ledger, `faults` the faults, `queued` the events that no stream
        has written yet. `mailboxes_subscribed` and `mailboxes_streaming` count mailboxes, not subscriptions.
        `authentication` is Authenticator.state.
        """
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
            "hanging": exchange.throttle.streams_by_account(),
            "requests": requests,
            "authentication": exchange.authenticator.state(),
        }

    def _mailbox(self, name: str) -> Mailbox:
        mailbox = self._exchange.directory.find(name)
        if mailbox is None:
            raise _NotFound(f"unknown mailbox {name!r}")
        return mailbox


def _json(status: int, value: object) -> Reply:
    return Reply(status, msgspec.json.encode(value) + b"\n", content_type="application/json")
