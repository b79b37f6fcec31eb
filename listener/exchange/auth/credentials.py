"""A user and a password, which may change while we run."""

from __future__ import annotations

import structlog
import trio

from listener.config.secrets import Secret, SecretError

log = structlog.get_logger()


class Credentials:
    """Who we are, and what proves it."""

    def __init__(self, user: str, password: Secret) -> None:
        self.user = user
        self._password = password
        self._renewing = trio.Lock()

    @property
    def password(self) -> str:
        return self._password.reveal()

    async def renewed(self, refused: str) -> bool:
        """Whether there is another password than the one that was refused: it is read again for that."""
        async with self._renewing:
            if self.password == refused:
                try:
                    # A command may take its time, and a file may lie on a network.
                    await trio.to_thread.run_sync(self._password.renew, abandon_on_cancel=True)
                except SecretError as error:
                    log.warning("auth.secret_unreadable", account=self.user, text=str(error))
        return self.password != refused
