"""Interfaces for operators (HTTP, status, metrics) and for systemd."""
