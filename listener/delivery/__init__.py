"""From the journal to the handlers."""
