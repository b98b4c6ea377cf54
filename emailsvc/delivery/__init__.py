"""From a claim to its recorded outcome."""
