"""The daemon against a simulated Exchange, in one command, with the deliveries held against the ledger."""
