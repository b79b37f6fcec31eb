"""Catch-up: finds changes that no stream reported, by comparing mailboxes with their snapshots."""
