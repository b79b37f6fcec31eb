"""Tests of the account's access: it must reach every configured mailbox, and no must_deny mailbox."""
