"""Email Notification Deduplication Service: one id, one e-mail."""

__version__ = "0.1.0+unreleased"
"""The newest of the changelog, and whether it has more."""
