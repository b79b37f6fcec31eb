"""What the account may reach: every mailbox that it is to serve, and none that must refuse it."""
