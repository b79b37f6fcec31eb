"""What faces the operator while the daemon runs."""
