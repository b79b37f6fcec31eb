"""Commands that access the journal. They need only its path from the configuration."""

from pathlib import Path

from typer.testing import CliRunner

from listener.cli import app
from listener.event import MailboxEvent
from listener.journal.sqlite import open_journal

EVENT = MailboxEvent(type="exchange.item.created", mailbox="a@b.c", time="2026-01-01T00:00:00Z", item_id="x")
# As in the unit: an operator's shell does not have the credentials of the service.
CONFIG = """
state_directory = "there"
auth = { user = "svc@b.c", password_credential = "password" }
mailboxes = { addresses = ["a@b.c"] }
handlers = { audit = { use = "log" } }
"""


def ask(config: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner(env={"CREDENTIALS_DIRECTORY": None}).invoke(app, [*arguments, "-c", str(config)])
    return result.exit_code, result.output


async def test_secrets_of_the_daemon_are_not_required(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    async with open_journal(tmp_path / "there") as journal:
        reader = await journal.reader("audit")
        await journal.append([EVENT])
        (entry,) = await reader.read(1)
        await reader.dead_letter([entry], reason="no room")
        status, output = ask(config, "dead-letters", "list")
        assert status == 0
        assert "no room" in output
        assert ask(config, "dead-letters", "retry", "1") == (0, "1 requeued\n")
        assert ask(config, "replay", "--handler", "audit", "--since", "1h") == (
            0,
            "1 queued for redelivery\n",
        )


def test_missing_configuration_is_reported(tmp_path: Path) -> None:
    status, output = ask(tmp_path / "none.toml", "dead-letters", "list")
    assert status == 2
    assert "none.toml: cannot be read" in output
