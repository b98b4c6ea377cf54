"""gunicorn's own lines, in the format of the application's with ``LOG_FORMAT=json``."""

from __future__ import annotations

from gunicorn.config import Config as Gunicorn
from gunicorn.glogging import Logger as TextLogger

from emailsvc import log
from emailsvc.errors import ConfigurationError
from emailsvc.settings.config import INSTANCE, from_environment


class Logger(TextLogger):  # type: ignore[misc]
    def setup(self, cfg: Gunicorn) -> None:
        super().setup(cfg)
        try:
            config = from_environment(INSTANCE)
        except ConfigurationError:  # the application ends the start with it
            return
        if config.log_format == "json":
            for handler in (*self.error_log.handlers, *self.access_log.handlers):
                handler.setFormatter(log.JsonFormatter())
