"""Answers that are spoiled by a fault."""

import time
from collections.abc import Callable

from listener.simulator import faults, replies
from listener.simulator.faults import Fault
from listener.simulator.http import Reply, page
from listener.simulator.replies import Failure

_LOGIN = b"""<!DOCTYPE html>
<html><head><meta charset="utf-8"><title>Sign in</title></head><body><h1>Sign in</h1>
<form method="post" action="/login"><input name="user"><input name="password" type="password"><br>
<button>Sign in</button></form></body></html>
"""
_TITLES = {
    302: "Found",
    401: "Unauthorized",
    403: "Forbidden",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


def answer(
    fault: Fault, operation: str, ids: list[str], host: str, now: float, genuine: Callable[[], Reply]
) -> Reply:
    """The answer to a request that the fault has struck. `genuine` answers it in earnest, where that is to happen
    at all; `ids` are the SubscriptionIds of the request."""
    match fault:
        case faults.ResponseCode():
            return response_code(fault, operation, ids)
        case faults.Http():
            return http(fault, host, now)
        case faults.LoginPage():
            return Reply(200, _LOGIN, content_type="text/html; charset=utf-8")
        case faults.StrayResponse():
            reply = Reply(500, replies.fault(Failure(fault.code)))
        case faults.NoAnswer() | faults.HangUp():
            reply = Reply(500, b"")
        case _:
            reply = genuine()
    reply.manner = fault
    return reply


def response_code(fault: faults.ResponseCode, operation: str, ids: list[str]) -> Reply:
    values = {} if fault.back_off_ms is None else {"BackOffMilliseconds": str(fault.back_off_ms)}
    failure = Failure(fault.code, values=values)
    if fault.place == "fault":
        return Reply(fault.status, replies.fault(failure))
    if fault.place == "faultcode":
        return Reply(fault.status, replies.fault(failure, detail=False))
    content = replies.ERROR_CONTENT.get(operation, "")
    if operation == "GetStreamingEvents" and fault.ids != "none":
        content = replies.error_subscription_ids(ids[:1] if fault.ids == "one" else ids)
    message = replies.error(operation, failure, content)
    return Reply(200, replies.envelope(replies.response(operation, [message])))


def http(fault: faults.Http, host: str, now: float) -> Reply:
    headers: list[tuple[str, str]] = []
    if fault.status == 401:
        headers.append(("WWW-Authenticate", f'Basic realm="{host}"'))
    if fault.status == 403 and fault.policy_reason:
        headers.append(("X-EWS-Policy-Reason", fault.policy_reason))
    if fault.status < 400:
        headers.append(("Location", fault.location))
    if fault.status == 451:
        headers.append(("X-MS-Location", fault.location))
    if fault.retry_after is not None:
        then = time.gmtime(now + fault.retry_after)
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", then)
        headers.append(("Retry-After", date if fault.retry_after_date else str(fault.retry_after)))
    return page(fault.status, _TITLES.get(fault.status, "Error"), headers)
