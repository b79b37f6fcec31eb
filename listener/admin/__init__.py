"""What faces the operator and the machine's service manager."""
