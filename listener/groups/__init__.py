"""Affinity groups: mailboxes that share one streaming connection, their state, tasks and checkpoints."""
