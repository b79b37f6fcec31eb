"""Delivery of journaled events to handlers."""
