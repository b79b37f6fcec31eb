"""An Exchange server to run the listener against, with its own reading of the published protocol.

It imports nothing of `listener.ews`, so that a misunderstanding cannot stand on both sides. Sources: MS-OXWSNTIF,
MS-OXWSCDATA, MS-OXWSADISC, and on learn.microsoft.com "Notification subscriptions, mailbox events, and EWS in
Exchange", "Handling notification-related errors in EWS in Exchange", "How to: Maintain affinity between a group of
subscriptions and the Mailbox server in Exchange" and "EWS throttling in Exchange".

    settings.py       what a simulated organisation is made of
    names.py          plausible people
    mailstore.py      mailboxes, folders and items, and the events that each change of them makes
    faults.py         what can be broken, as values
    plans.py          when: profiles, TOML
    directory.py      the organisation: accounts, rights, which mailbox lives on which back end
    rights.py         the scope of impersonation, delegates, EWS switched off
    groups.py         distribution groups
    traffic.py        seeded users who read, write, move and delete
    ledger.py         the truth: one line a change
    http.py           one HTTP request and its reply
    requests.py       bytes of a request -> values
    replies.py        values -> bytes of a reply
    routing.py        which back end answers
    budgets.py        throttling
    subscriptions.py  subscription tables and streams
    session.py        one request being served, and what the ids in it mean
    shapes.py         folders and items as elements
    search.py         restriction, order and page
    sync.py           what has changed since a client looked last
    operations.py     the operations on folders and items
    chaos.py          makes faults, on time or on demand
    answers.py        faults in the answer to a request
    interference.py   faults in an open stream
    disasters.py      faults of back ends, mailboxes, the organisation
    conditions.py     what is the matter right now
    exchange.py       the server without its sockets: requests in, replies out, the time given
    autodiscover.py   SOAP and POX
    auth/             who is asking: one class a scheme
    front.py          the front end: who is asking, and whom
    control.py        the doors for tests: events on demand, state, rate, faults
    server.py         the sockets
    outlet.py         the sending side of a connection, with good manners and bad ones
    door.py           the listening socket, open or shut
    tls.py            certificates, good and bad
    run.py            the process
"""
