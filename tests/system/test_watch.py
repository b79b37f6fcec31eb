"""`ews-listener watch` as a process."""

import json
import subprocess
import sys

from tests.system.operating import command
from tests.system.processes import Listen, Start, handler, json_lines, until


def test_what_happens_with_a_mailbox(simulator: Start, listen: Listen, plugins: str) -> None:
    there = simulator()
    mailbox, other = there.mailboxes[:2]
    there.append(handler("raising", "acme:open_raising", "attempts = 1"))
    daemon = listen(there, PYTHONPATH=plugins)
    there.streaming(4)
    out, shown = there.folder / "watched.jsonl", there.folder / "shown"
    words = [sys.executable, "-m", "listener", "watch", mailbox, "--config", str(there.config)]
    with (
        out.open("w") as file,
        shown.open("w") as pretty,
        subprocess.Popen([*words, "--json"], stdout=file, stderr=subprocess.PIPE, text=True) as machine,
        subprocess.Popen(words, stdout=pretty) as people,
    ):
        try:
            until(lambda: json_lines(out) and "watching" in shown.read_text(), "watchers")
            made = there.make(mailbox)
            there.make(other)
            until(lambda: any(line["kind"] == "event" for line in json_lines(out)), "an event")
            there.break_(kind="stream_code", code="ErrorSubscriptionNotFound", mailbox=mailbox)

            def seen() -> set[str]:
                return {
                    f"{line['kind']} {line.get('operation', line.get('result', ''))}"
                    for line in json_lines(out)
                }

            wanted = {"event ", "delivery done", "delivery given_up", "request GetStreamingEvents", "log "}
            until(lambda: wanted <= seen(), f"{wanted}")
            subjects = {line["subject"] for line in json_lines(out) if line["kind"] in ("event", "delivery")}
            assert subjects >= {line.get("item_id") or line["folder_id"] for line in made}
            assert other not in out.read_text()
            until(lambda: "delivery" in shown.read_text(), "the same for people")
            assert daemon.end() == 0
            assert machine.wait(15) == 1
            assert machine.stderr is not None
            assert "the daemon has ended" in machine.stderr.read()
            assert people.wait(15) == 1
        finally:
            machine.kill()
            people.kill()
    assert all(json.loads(line) for line in out.read_text().splitlines())


def test_a_mailbox_that_is_not_listened_to(simulator: Start, listen: Listen) -> None:
    there = simulator()
    assert "no daemon answers" in command(there, "watch", "nobody@contoso.example").stderr
    listen(there)
    there.streaming(4)
    told = command(there, "watch", "nobody@contoso.example")
    assert (told.returncode, told.stderr) == (1, "error: nobody@contoso.example is not listened to\n")
