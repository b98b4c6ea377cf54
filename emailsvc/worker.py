"""The worker's entry point: ``huey_consumer emailsvc.worker.huey``."""

from emailsvc.app import load

huey = load(wait_for_database=True).extensions["huey"]
