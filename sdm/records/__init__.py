"""Occurrence records."""
