"""Who tells a worker to look, and who looks anyway."""
