"""What comes back about an e-mail after the mail server took it, told by a provider or a bounce mail. Pure."""
