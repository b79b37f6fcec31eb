"""Sample replies of Exchange, according to the schema, with selectable prefixes."""

from xml.sax.saxutils import quoteattr

SOAP = "http://schemas.xmlsoap.org/soap/envelope/"
MESSAGES = "http://schemas.microsoft.com/exchange/services/2006/messages"
TYPES = "http://schemas.microsoft.com/exchange/services/2006/types"
ERRORS = "http://schemas.microsoft.com/exchange/services/2006/errors"
DECLARATION = b'<?xml version="1.0" encoding="utf-8"?>'


def tag(prefix: str, name: str) -> str:
    return f"{prefix}:{name}" if prefix else name


def envelope(body: str, *, prefix: str = "s", end_space: str = "", header: bool = True) -> bytes:
    """Return a SOAP envelope with `body`. `end_space` is white space in its end tag."""
    declared = f"xmlns:{prefix}" if prefix else "xmlns"
    info = (
        f'<h:ServerVersionInfo xmlns:h="{TYPES}" MajorVersion="15" MinorVersion="2" MajorBuildNumber="1544"/>'
    )
    head = f"<{tag(prefix, 'Header')}>{info}</{tag(prefix, 'Header')}>" if header else ""
    root, inner = tag(prefix, "Envelope"), tag(prefix, "Body")
    return f'<{root} {declared}="{SOAP}">{head}<{inner}>{body}</{inner}></{root}{end_space}>'.encode()


def stream(*messages: str, **options: object) -> bytes:
    """Return one envelope of a GetStreamingEvents reply."""
    return envelope(
        f'<m:GetStreamingEventsResponse xmlns:m="{MESSAGES}" xmlns:t="{TYPES}"><m:ResponseMessages>'
        f"{''.join(messages)}</m:ResponseMessages></m:GetStreamingEventsResponse>",
        **options,  # type: ignore[arg-type]
    )


def message(
    *notifications: str,
    code: str = "NoError",
    text: str = "",
    failing: str = "",
    status: str = "",
    xml: str = "",
    response_class: str | None = None,
) -> str:
    """Return a GetStreamingEventsResponseMessage."""
    name = "m:GetStreamingEventsResponseMessage"
    return (
        f'<{name} ResponseClass="{response_class or ("Success" if code == "NoError" else "Error")}">'
        + (f"<m:MessageText>{text}</m:MessageText>" if text else "")
        + f"<m:ResponseCode>{code}</m:ResponseCode>"
        + (f"<m:DescriptiveLinkKey>0</m:DescriptiveLinkKey>{xml}" if xml else "")
        + (f"<m:Notifications>{''.join(notifications)}</m:Notifications>" if notifications else "")
        + failing
        + (f"<m:ConnectionStatus>{status}</m:ConnectionStatus>" if status else "")
        + f"</{name}>"
    )


def failing(*ids: str, prefix: str = "t") -> str:
    name = tag(prefix, "SubscriptionId")
    ids_ = "".join(f"<{name}>{id_}</{name}>" for id_ in ids)
    return f"<m:ErrorSubscriptionIds>{ids_}</m:ErrorSubscriptionIds>"


def notification(subscription_id: str, *events: str, prefix: str = "m", more: bool | None = None) -> str:
    flag = "" if more is None else f"<t:MoreEvents>{str(more).lower()}</t:MoreEvents>"
    return (
        f"<{prefix}:Notification><t:SubscriptionId>{subscription_id}</t:SubscriptionId>{flag}"
        f"{''.join(events)}</{prefix}:Notification>"
    )


def event(kind: str, time: str = "2024-05-14T09:30:05Z", **ids: str | int | None) -> str:
    """Return an event. The keys of `ids` are elements: ItemId, ParentFolderId, OldItemId, … and UnreadCount."""
    key = ids.pop("ChangeKey", None)
    parts = [f"<t:{kind}><t:TimeStamp>{time}</t:TimeStamp>"]
    for name, value in ids.items():
        if value is None:
            continue
        if name == "UnreadCount":
            parts.append(f"<t:UnreadCount>{value}</t:UnreadCount>")
        else:
            own = name in ("ItemId", "FolderId") and key is not None
            change_key = f" ChangeKey={quoteattr(str(key))}" if own else ""
            parts.append(f"<t:{name} Id={quoteattr(str(value))}{change_key}/>")
    parts.append(f"</t:{kind}>")
    return "".join(parts)


STATUS = "<t:StatusEvent/>"


def fault(
    code: str | None = "ErrorServerBusy",
    *,
    faultcode: str = "a:ErrorServerBusy",
    text: str = "The server cannot service this request right now. Try again later.",
    namespace: str = ERRORS,
    values: str = "",
) -> bytes:
    """Return a SOAP fault. `values` is in the detail, after the response code."""
    detail = ""
    if code is not None:
        detail = (
            f'<detail><e:ResponseCode xmlns:e="{namespace}">{code}</e:ResponseCode>'
            f'<e:Message xmlns:e="{namespace}">{text}</e:Message>{values}</detail>'
        )
    return envelope(
        f'<s:Fault><faultcode xmlns:a="{TYPES}">{faultcode}</faultcode>'
        f'<faultstring xml:lang="en-US">{text}</faultstring>{detail}</s:Fault>',
        header=False,
    )


def back_off(milliseconds: object, namespace: str = TYPES) -> str:
    return (
        f'<t:MessageXml xmlns:t="{namespace}">'
        f'<t:Value Name="BackOffMilliseconds">{milliseconds}</t:Value></t:MessageXml>'
    )


def subscribed(subscription_id: str = "JgBzcnYtMDEuZXhhbXBsZS5vcmc") -> bytes:
    return reply(
        "Subscribe",
        '<m:SubscribeResponseMessage ResponseClass="Success"><m:ResponseCode>NoError</m:ResponseCode>'
        f"<m:SubscriptionId>{subscription_id}</m:SubscriptionId></m:SubscribeResponseMessage>",
    )


def reply(operation: str, messages: str) -> bytes:
    return DECLARATION + envelope(
        f'<m:{operation}Response xmlns:m="{MESSAGES}" xmlns:t="{TYPES}"><m:ResponseMessages>{messages}'
        f"</m:ResponseMessages></m:{operation}Response>"
    )


def refused(operation: str, code: str, text: str = "No.", xml: str = "") -> bytes:
    return reply(
        operation,
        f'<m:{operation}ResponseMessage ResponseClass="Error"><m:MessageText>{text}</m:MessageText>'
        f"<m:ResponseCode>{code}</m:ResponseCode><m:DescriptiveLinkKey>0</m:DescriptiveLinkKey>{xml}"
        f"</m:{operation}ResponseMessage>",
    )
