"""Email Notification Deduplication Service: one id, one e-mail."""
