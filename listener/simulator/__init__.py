"""A simulated Exchange organization to run the listener against.

It is written from the published protocol alone and imports nothing from `listener.ews`, so that a misread
specification cannot be wrong in the same way on both sides. Sources: MS-OXWSNTIF, MS-OXWSCDATA, MS-OXWSADISC, and on
learn.microsoft.com "Notification subscriptions, mailbox events, and EWS in Exchange", "Handling notification-related
errors in EWS in Exchange", "How to: Maintain affinity between a group of subscriptions and the Mailbox server in
Exchange" and "EWS throttling in Exchange".

    settings.py         options of a simulated organization
    directory.py        mailboxes, accounts, back ends, access rights, distribution groups
    mailstore.py        folders and items of a mailbox, and the events that each change makes
    traffic.py          simulated users that read, write, move and delete
    ledger.py           a log of all changes and faults, to compare deliveries with
    faults.py           the kinds of faults and their parameters
    fault_plans.py      when faults happen: profiles and TOML files
    fault_scheduler.py  makes faults on time or on demand
    fault_effects.py    what a fault does to a response, a stream, a mailbox, a back end
    requests.py         parses requests; resolves their ids and checks access
    responses.py        formats responses, notifications, folders and items
    http.py             one HTTP request and its reply
    frontend.py         routing to back ends, throttling
    subscriptions.py    subscriptions and the streams that read them
    operations.py       the EWS operations on folders and items
    sync.py             SyncStates and the changes since one
    autodiscover.py     Autodiscover over SOAP and POX
    auth/               authentication schemes
    exchange.py         the server without sockets: request in, reply out, the time is a parameter
    control.py          the control API for tests
    connection.py       one HTTP connection, including faults on the wire
    server.py           listener sockets and the main loop
    tls.py              valid and invalid certificates
    run.py              the process
"""
