"""Configuration: every parser, and what the operator reads when a value is wrong."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emailsvc.app import create_app
from emailsvc.errors import ConfigurationError
from emailsvc.settings import config
from emailsvc.settings.config import SETTINGS
from emailsvc.settings.parsers import SmtpServer

ROOT = Path(__file__).resolve().parents[2]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_C2FVsBQIhrscChlQIMV+b5sSYob7oD8="
HIDDEN = "hunter2hunter2"


def load(**environ: str) -> config.Config:
    return config.load(environ, Path("instance"))


def refusal(**environ: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        load(**environ)
    return str(raised.value)


GOOD: list[tuple[str, str, Any]] = [
    ("DATABASE_URL", "postgres://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
    ("DATABASE_URL", "postgresql://u:p@h/d?sslmode=require", "postgresql+psycopg://u:p@h/d?sslmode=require"),
    ("DATABASE_URL", "postgresql+psycopg://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
    ("DATABASE_URL", "postgres://u:p@h/d?prepare_threshold=0", "postgresql+psycopg://u:p@h/d?prepare_threshold=0"),
    ("DATABASE_URL", "sqlite:////var/lib/emails.db", "sqlite:////var/lib/emails.db"),
    ("REDIS_URL", "redis://:p@h:6379/1", "redis://:p@h:6379/1"),
    ("REDIS_URL", "rediss://:p@h:6380?ssl_cert_reqs=none", "rediss://:p@h:6380?ssl_cert_reqs=none"),
    ("SMTP_URL", "smtp://mail.example.com", SmtpServer("mail.example.com", 587, "starttls")),
    ("SMTP_URL", "smtp://u:p@mail.example.com:2525", SmtpServer("mail.example.com", 2525, "starttls", "u", "p")),
    ("SMTP_URL", "smtp://u%40x:p%2F%3A%40@h", SmtpServer("h", 587, "starttls", "u@x", "p/:@")),
    ("SMTP_URL", "smtp://relay.internal?starttls=off", SmtpServer("relay.internal", 587, "none")),
    ("SMTP_URL", "smtp://localhost", SmtpServer("localhost", 25, "none")),
    ("SMTP_URL", "smtp://127.0.0.1:1025/", SmtpServer("127.0.0.1", 1025, "none")),
    ("SMTP_URL", "smtp://[::1]:1025", SmtpServer("::1", 1025, "none")),
    ("SMTP_URL", "smtps://u:p@mail.example.com", SmtpServer("mail.example.com", 465, "implicit", "u", "p")),
    ("SMTP_URL", "smtps://127.0.0.1:4650", SmtpServer("127.0.0.1", 4650, "implicit")),
    ("MAIL_FROM", "billing@example.com", "billing@example.com"),
    ("MAIL_FROM_DOMAINS", "Example.com, example.org.  example.net", ("example.com", "example.org", "example.net")),
    ("BOUNCE_ADDRESS", "bounces+shop@Bücher.example", "bounces+shop@xn--bcher-kva.example"),
    ("RETRY_DELAY_SECONDS", "0.5", 0.5),
    ("RETRY_DELAY_SECONDS", "0", 0.0),
    ("MAX_RETRY_ATTEMPTS", "0", 0),
    ("RETRY_MAX_DELAY_SECONDS", "60", 60.0),
    ("ON_UNCERTAIN", "retry", "retry"),
    ("ON_MISMATCH", "accept", "accept"),
    ("DEDUPE_WINDOW_SECONDS", "86400", 86400),
    ("DEDUPE_MODE", "observe", "observe"),
    ("IDEMPOTENCY_HEADER", "Resend-Idempotency-Key", "Resend-Idempotency-Key"),
    ("SMTP_TIMEOUT_SECONDS", "20", 20.0),
    ("SMTP_REPLY_TIMEOUT_SECONDS", "0.1", 0.1),
    ("OUTAGE_LIMIT_SECONDS", "3600", 3600.0),
    ("BATCH_SIZE", "1", 1),
    ("LEASE_SECONDS", "90.1", 90.1),
    ("SWEEP_SECONDS", "1", 1.0),
    ("WORKER_THREADS", "64", 64),
    ("RATE_LIMIT_PER_SECOND", "0.5", 0.5),
    *(("DELIVERY_PAUSED", text, True) for text in ("1", "true", "YES", "on")),
    *(("DELIVERY_PAUSED", text, False) for text in ("0", "False", "no", "off")),
    ("WEBHOOK_SECRETS", f"{SECRET},{OTHER}", (SECRET, OTHER)),
    ("WEBHOOK_SECRETS", f"{SECRET}\n {OTHER}", (SECRET, OTHER)),
    ("API_TOKENS", "0123456789abcdef", ("0123456789abcdef",)),
    ("API_TOKENS", "0123456789abcdef , fedcba9876543210", ("0123456789abcdef", "fedcba9876543210")),
    (
        "REPORT_SECRETS",
        "resend:whsec_C2FVsBQIhrscChlQIMV+b5sSYob7oD8=,mine:0123456789abcdef mine:fedcba9876543210",
        (
            ("resend", "whsec_C2FVsBQIhrscChlQIMV+b5sSYob7oD8="),
            ("mine", "0123456789abcdef"),
            ("mine", "fedcba9876543210"),
        ),
    ),
    ("REPORT_HEADER", "X-PM-Metadata-ref", "X-PM-Metadata-ref"),
    ("REPORT_WAIT_SECONDS", "0", 0.0),
    ("MAX_REQUEST_BYTES", "1024", 1024),
    ("BODY_RETENTION_SECONDS", "0", 0.0),
    ("EMAIL_RETENTION_DAYS", "30", 30.0),
    ("READY_MAX_AGE_SECONDS", "60", 60.0),
    ("LOG_FORMAT", "json", "json"),
    ("LOG_LEVEL", "DEBUG", "DEBUG"),
    ("LOG_LEVEL", "info", "INFO"),
    ("API_TOKENS", "0123456789abcdef,", ("0123456789abcdef",)),
    (
        "OPERATOR_TOKENS",
        "alice:0123456789abcdef, alice:fedcba9876543210 bob:0123456789abcdeF",
        (("alice", "0123456789abcdef"), ("alice", "fedcba9876543210"), ("bob", "0123456789abcdeF")),
    ),
    ("PORT", "5000", 5000),
    ("WEB_CONCURRENCY", "4", 4),
]

BAD: list[tuple[str, str, str]] = [
    ("DATABASE_URL", "mysql://u:p@h/d", "postgres://"),
    ("DATABASE_URL", "emails.db", "sqlite:///"),
    ("DATABASE_URL", "postgres://u:p@rt@h/d", "percent-encode"),
    ("DATABASE_URL", "postgres://u:p@h/d?prepare_threshold=none", "prepare_threshold"),
    ("DATABASE_URL", "postgres://u:p@h/d?prepare_threshold=0&prepare_threshold=1", "prepare_threshold"),
    ("REDIS_URL", "localhost:6379", "redis:// or rediss://"),
    ("SMTP_URL", "mail.example.com", "smtp://user:password@host:587"),
    ("SMTP_URL", "http://mail.example.com", "smtps://"),
    ("SMTP_URL", "smtp://", "smtp://user:password@host:587"),
    ("SMTP_URL", "smtp://h:99999", "smtp://user:password@host:587"),
    ("SMTP_URL", "smtp://h:port", "smtp://user:password@host:587"),
    ("SMTP_URL", "smtp://h/path", "smtp://user:password@host:587"),
    ("SMTP_URL", "smtp://h?starttls=maybe", "?starttls=off"),
    ("SMTP_URL", "smtp://u:pa/ss@h", "percent-encode"),
    ("SMTP_URL", "smtp://[::1", "smtp://user:password@host:587"),
    ("MAIL_FROM", "nobody", "one e-mail address"),
    ("MAIL_FROM", "Billing <billing@example.com>", "one e-mail address"),
    ("MAIL_FROM", "a@example.com,b@example.com", "one e-mail address"),
    ("MAIL_FROM", "a@example.com\nBcc: b@example.com", "one e-mail address"),
    ("MAIL_FROM_DOMAINS", "billing@example.com", "domain names"),
    ("MAIL_FROM_DOMAINS", ".", "domain names"),
    ("BOUNCE_ADDRESS", "<>", "one e-mail address"),
    ("BOUNCE_ADDRESS", "bounces", "one e-mail address"),
    ("BOUNCE_ADDRESS", "zurück@example.com", "an ASCII local part"),
    *(("RETRY_DELAY_SECONDS", text, "a number from 0 to") for text in ("-1", "five", "nan", "inf", "1,5", "2e9")),
    *(("MAX_RETRY_ATTEMPTS", text, "a whole number from 0 to 1000") for text in ("-1", "1001", "2.5", "1e2", "٣")),
    ("RETRY_MAX_DELAY_SECONDS", "-0.1", "a number from 0"),
    ("ON_UNCERTAIN", "drop", "hold or retry"),
    ("ON_MISMATCH", "Reject", "reject or accept"),
    ("DEDUPE_WINDOW_SECONDS", "0", "a whole number from 1 to 86400"),
    ("DEDUPE_WINDOW_SECONDS", "0.5", "a whole number from 1 to 86400"),
    ("DEDUPE_MODE", "off", "enforce or observe"),
    ("IDEMPOTENCY_HEADER", "Idempotency Key", "letters, digits and hyphens"),
    ("IDEMPOTENCY_HEADER", "X-Key: 1", "letters, digits and hyphens"),
    ("SMTP_TIMEOUT_SECONDS", "0", "a number from 0.1 to 3600"),
    ("SMTP_REPLY_TIMEOUT_SECONDS", "3601", "a number from 0.1 to 3600"),
    ("OUTAGE_LIMIT_SECONDS", "0", "a number from 1"),
    ("BATCH_SIZE", "0", "a whole number from 1 to 1000"),
    ("LEASE_SECONDS", "0.5", "a number from 1"),
    ("SWEEP_SECONDS", "0", "a number from 1 to 3600"),
    ("WORKER_THREADS", "65", "a whole number from 1 to 64"),
    ("RATE_LIMIT_PER_SECOND", "0", "a number from 0.001 to 1000000"),
    ("DELIVERY_PAUSED", "maybe", "1 or 0"),
    ("WEBHOOK_SECRETS", "not-a-secret", "flask secret"),
    ("WEBHOOK_SECRETS", f"{SECRET},whsec_c2hvcnQ=", "flask secret"),
    ("API_TOKENS", "short", "16 or more characters"),
    ("OPERATOR_TOKENS", "0123456789abcdef", "name:token"),
    ("OPERATOR_TOKENS", "alice:short", "16 or more characters"),
    ("OPERATOR_TOKENS", "al:ice:0123456789abcdef", "without a colon"),
    ("OPERATOR_TOKENS", ":0123456789abcdef", "name:token"),
    ("OPERATOR_TOKENS", "alice:0123456789abcdef,bob:0123456789abcdef", "no token twice"),
    ("API_TOKENS", "0123456789abcdefü", "ASCII"),
    ("REPORT_SECRETS", "0123456789abcdef", "route:secret"),
    ("REPORT_SECRETS", "mine:short", "16 or more characters"),
    ("REPORT_SECRETS", "sengrid:0123456789abcdef", "the routes are mine, dsn, ses"),
    ("REPORT_SECRETS", "mine:01234567:89abcdef", "without a colon"),
    ("REPORT_HEADER", "X-Anything", "X-Email-Ref or X-PM-Metadata-ref"),
    ("REPORT_WAIT_SECONDS", "-1", "a number from 0 to 86400"),
    ("MAX_REQUEST_BYTES", "10MiB", "a whole number from 1024"),
    ("BODY_RETENTION_SECONDS", "week", "a number from 0"),
    ("EMAIL_RETENTION_DAYS", "-1", "a number from 0"),
    ("READY_MAX_AGE_SECONDS", "0", "a number from 1"),
    ("LOG_FORMAT", "xml", "text or json"),
    ("LOG_LEVEL", "loud", "DEBUG or INFO or WARNING or ERROR"),
    ("PORT", "65536", "a whole number from 1 to 65535"),
    ("WEB_CONCURRENCY", "0", "a whole number from 1 to 1000"),
]

MAY_HOLD_SECRETS = (
    "DATABASE_URL",
    "REDIS_URL",
    "SMTP_URL",
    "WEBHOOK_SECRETS",
    "API_TOKENS",
    "OPERATOR_TOKENS",
    "REPORT_SECRETS",
)


def test_every_setting_has_a_good_and_a_bad_example_here() -> None:
    names = {setting.name for setting in SETTINGS}
    assert {name for name, _, _ in GOOD} == names
    assert {name for name, _, _ in BAD} == names


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_it_reads_a_good_value(name: str, text: str, value: Any) -> None:
    assert getattr(load(**{name: text}), name.lower()) == value


@pytest.mark.parametrize(("name", "text", "allowed"), BAD)
def test_a_bad_value_is_one_line_that_names_the_variable_the_value_and_what_is_allowed(
    name: str, text: str, allowed: str
) -> None:
    line = refusal(**{name: text})
    shown = "(not shown)" if name in MAY_HOLD_SECRETS else repr(text)
    assert line.startswith(f"{name}={shown}: expected ")
    assert allowed in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DATABASE_URL", f"mysql://u:{HIDDEN}@h/d"),
        ("DATABASE_URL", f"postgres://u:p@{HIDDEN}:p@h/d"),
        ("REDIS_URL", f"http://:{HIDDEN}@h"),
        ("SMTP_URL", f"smtp://u:{HIDDEN}@h:port"),
        ("SMTP_URL", f"smtp://u:{HIDDEN}#@h"),
        ("WEBHOOK_SECRETS", f"{HIDDEN}%"),
        ("API_TOKENS", HIDDEN),
        ("OPERATOR_TOKENS", HIDDEN),
    ],
)
def test_a_bad_value_that_may_hold_a_secret_is_never_shown(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load(**{name: text})
    assert str(raised.value).startswith(f"{name}=(not shown): expected ")
    assert HIDDEN not in "".join(traceback.format_exception_only(raised.value))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DATABASE_URL", f"postgres://u:{HIDDEN}@h:port/d"),
        ("DATABASE_URL", f"postgres://u@h:{HIDDEN}/d"),
        ("DATABASE_URL", f"sqlite://{HIDDEN}/emails.db"),
        ("DATABASE_URL", "sqlite://"),
        ("DATABASE_URL", "sqlite:///:memory:"),
        ("REDIS_URL", f"redis://:{HIDDEN}@h:port"),
        ("REDIS_URL", f"redis://h:{HIDDEN}"),
        ("REDIS_URL", f"redis://:{HIDDEN}@h?no_such_option=1"),
        ("REDIS_URL", f"redis://:{HIDDEN}@h?socket_timeout=soon"),
        ("REDIS_URL", f"rediss://:{HIDDEN}@h?ssl_cert_reqs=maybe"),
        ("REDIS_URL", f"redis://:{HIDDEN}@h?protocol=9"),
    ],
)
def test_a_url_that_only_its_library_can_tell_is_bad_stops_the_start_in_the_same_way(
    name: str, text: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        create_app(config.load({name: text}, tmp_path))
    assert str(raised.value).startswith(f"{name}=(not shown): expected ")
    assert HIDDEN not in "".join(traceback.format_exception_only(raised.value))


def test_a_loaded_configuration_can_be_printed_without_its_secrets() -> None:
    loaded = load(
        DATABASE_URL=f"postgres://u:{HIDDEN}@h/d",
        REDIS_URL=f"redis://:{HIDDEN}@h",
        SMTP_URL=f"smtp://u:{HIDDEN}@h",
        API_TOKENS=f"token-{HIDDEN}",
        WEBHOOK_SECRETS=SECRET,
    )
    assert loaded.smtp_url is not None
    assert loaded.smtp_url.password == HIDDEN
    assert HIDDEN not in f"{loaded!r} {loaded}"
    assert SECRET not in repr(loaded)


def test_an_empty_environment_is_a_laptop() -> None:
    laptop = load()
    assert laptop.database_url == "sqlite:///instance/emailsvc.db"
    assert laptop.is_sqlite
    assert (laptop.redis_url, laptop.smtp_url, laptop.port, laptop.rate_limit_per_second) == (None, None, None, None)
    assert (laptop.webhook_secrets, laptop.api_tokens, laptop.mail_from_domains) == ((), (), ())
    assert laptop.on_uncertain == "hold"
    assert laptop.from_domains == {"localhost"}


def test_an_empty_or_blank_value_is_as_good_as_none() -> None:
    assert load(**{setting.name: "" for setting in SETTINGS}) == load()
    assert load(**{setting.name: " \t" for setting in SETTINGS}) == load()


def test_blanks_around_a_value_do_not_matter() -> None:
    assert load(BATCH_SIZE=" 7 ").batch_size == 7


def test_the_defaults_satisfy_their_own_parsers() -> None:
    for setting in SETTINGS:
        if setting.default:
            assert getattr(load(), setting.name.lower()) == setting.parse(setting.default)


def test_uncertain_e_mails_are_retried_by_default_only_where_the_provider_de_duplicates() -> None:
    assert load(IDEMPOTENCY_HEADER="Idempotency-Key").on_uncertain == "retry"
    assert load(IDEMPOTENCY_HEADER="Idempotency-Key", ON_UNCERTAIN="hold").on_uncertain == "hold"


@pytest.mark.parametrize("name", ["Message-ID", "Subject", "to", "Content-Type", "DKIM-Signature"])
def test_the_idempotency_header_may_not_be_one_that_every_e_mail_has_already(name: str) -> None:
    assert refusal(IDEMPOTENCY_HEADER=name).startswith(f"IDEMPOTENCY_HEADER={name!r}: expected ")


def test_from_may_use_the_domain_of_mail_from_and_the_further_ones() -> None:
    loaded = load(MAIL_FROM="Billing@Example.COM", MAIL_FROM_DOMAINS="example.org")
    assert loaded.from_domains == {"example.com", "example.org"}


@pytest.mark.parametrize("lease", ["90", "45"])
def test_a_lease_that_does_not_cover_one_conversation_is_refused(lease: str) -> None:
    line = refusal(LEASE_SECONDS=lease, SMTP_TIMEOUT_SECONDS="30", SMTP_REPLY_TIMEOUT_SECONDS="60")
    assert line.startswith(f"LEASE_SECONDS={lease}: expected more than 90")
    assert "SMTP_TIMEOUT_SECONDS and SMTP_REPLY_TIMEOUT_SECONDS" in line


def test_a_longer_reply_timeout_needs_a_longer_lease() -> None:
    assert "expected more than 330" in refusal(SMTP_REPLY_TIMEOUT_SECONDS="300")
    assert load(SMTP_REPLY_TIMEOUT_SECONDS="300", LEASE_SECONDS="331").lease_seconds == 331


def test_a_token_that_may_only_send_is_no_operator_s() -> None:
    with pytest.raises(ConfigurationError, match="OPERATOR_TOKENS and API_TOKENS share a token") as caught:
        load(OPERATOR_TOKENS="alice:0123456789abcdef", API_TOKENS="0123456789abcdef")
    assert "0123456789abcdef" not in str(caught.value)


def test_a_dyno_needs_postgresql() -> None:
    assert refusal(DYNO="web.1", SMTP_URL="smtp://h").startswith("DATABASE_URL")
    given = refusal(DYNO="web.1", SMTP_URL="smtp://h", DATABASE_URL="sqlite:////tmp/emails.db")
    assert given.startswith("DATABASE_URL")
    assert "not set" not in given


def test_a_dyno_needs_a_mail_server() -> None:
    assert refusal(DYNO="worker.1", DATABASE_URL="postgres://h/d").startswith("SMTP_URL is not set")


def test_a_dyno_needs_redis() -> None:
    assert refusal(DYNO="web.1", DATABASE_URL="postgres://h/d", SMTP_URL="smtp://h").startswith("REDIS_URL is not set")


def test_a_dyno_with_all_three_starts() -> None:
    assert load(DYNO="web.1", DATABASE_URL="postgres://h/d", SMTP_URL="smtp://h", REDIS_URL="redis://h").port is None


@given(st.sampled_from(SETTINGS), st.text())
def test_whatever_a_variable_holds_the_answer_is_a_value_or_a_sentence(setting: config.Setting, text: str) -> None:
    line = f"{setting.name}="
    try:
        load(**{setting.name: text})
    except ConfigurationError as exc:
        line = str(exc)
    assert line.startswith(f"{setting.name}=")
    assert len(line.splitlines()) == 1


@pytest.fixture
def dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for setting in SETTINGS:
        monkeypatch.delenv(setting.name, raising=False)
    return tmp_path / ".env"


def test_the_env_file_beside_the_instance_folder_is_read(dotenv: Path) -> None:
    dotenv.write_text('# a comment\nBATCH_SIZE=7\nexport MAIL_FROM="a@example.com"\n\nLOG_LEVEL\n')
    loaded = config.from_environment(dotenv.parent / "instance")
    assert (loaded.batch_size, loaded.mail_from, loaded.log_level) == (7, "a@example.com", "INFO")


def test_an_env_file_that_is_not_utf8_is_named(dotenv: Path) -> None:
    dotenv.write_bytes("# clé\n".encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"\.env is not UTF-8"):
        config.from_environment(dotenv.parent / "instance")


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"garbage" * 99), lambda path: path.mkdir()])
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_queue_file_that_cannot_be_used_is_named(spoil: Callable[[Path], Any], tmp_path: Path) -> None:
    spoil(tmp_path / "queue.db")
    with pytest.raises(ConfigurationError, match=r"queue\.db cannot be used: .*holds only wake-ups"):
        create_app(config.load({}, tmp_path))
    gc.collect()  # Huey leaves the connection open that could not be used


def test_an_instance_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="instance cannot be made: Not a directory"):
        create_app(config.load({}, tmp_path / "file" / "instance"))


@pytest.mark.parametrize(
    ("content", "line"),
    [("BATCH_SIZE=7\nMAIL FROM=a@example.com\n", 2), ("# fine\n\nSMTP_URL='smtp://h\nBATCH_SIZE=7\n", 3), ("=7\n", 1)],
)
def test_a_line_of_the_env_file_that_cannot_be_read_is_named(dotenv: Path, content: str, line: int) -> None:
    dotenv.write_text(content)
    with pytest.raises(
        ConfigurationError, match=rf"/\.env, line {line}: expected NAME=value, with every quote closed\."
    ):
        config.from_environment(dotenv.parent / "instance")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SMPT_URL", "SMTP_URL"), ("STMP_URL", "SMTP_URL"), ("API_TOKEN", "API_TOKENS"),
        ("DATABSE_URL", "DATABASE_URL"), ("MAIL_FORM", "MAIL_FROM"),
        ("smtp_url", "SMTP_URL"),
    ],
)  # fmt: skip
def test_a_misspelt_setting_is_named(dotenv: Path, name: str, meant: str) -> None:
    dotenv.write_text(f"{name}=0123456789abcdef\n")
    loaded = config.from_environment(dotenv.parent / "instance")
    assert loaded.misspelt == (f"{name} is not a setting: did you mean {meant}?",)


@pytest.mark.parametrize(
    "name", ["REDIS_TLS_URL", "FLASK_APP", "SSL_CERT_FILE", "PGPORT", "DYNO", "LOGNAME", "PYTHONPATH"]
)
def test_another_program_s_variable_is_not_taken_for_a_misspelt_setting(name: str) -> None:
    values = (
        {"DATABASE_URL": "postgres://h/d", "SMTP_URL": "smtp://h", "REDIS_URL": "redis://h"} if name == "DYNO" else {}
    )
    assert load(**values, **{name: "x"}).misspelt == ()


def test_a_name_beside_the_setting_that_it_resembles_was_meant() -> None:
    assert load(DATABASE_URL="postgres://h/d", DATABASE_URL_OLD="postgres://h/e").misspelt == ()


def test_the_environment_comes_before_the_env_file(dotenv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dotenv.write_text("BATCH_SIZE=7\nWORKER_THREADS=2\n")
    monkeypatch.setenv("BATCH_SIZE", "8")
    loaded = config.from_environment(dotenv.parent / "instance")
    assert (loaded.batch_size, loaded.worker_threads) == (8, 2)


def test_an_empty_variable_in_the_environment_hides_the_one_in_the_env_file(
    dotenv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dotenv.write_text("BATCH_SIZE=7\n")
    monkeypatch.setenv("BATCH_SIZE", "")
    assert config.from_environment(dotenv.parent / "instance").batch_size == 10


def test_no_env_file_is_fine(dotenv: Path) -> None:
    assert config.from_environment(dotenv.parent / "instance").batch_size == 10


def test_the_header_of_reports_may_not_be_the_one_of_the_provider_that_de_duplicates() -> None:
    given = {"IDEMPOTENCY_HEADER": "x-email-ref", "REPORT_SECRETS": "mine:0123456789abcdef"}
    with pytest.raises(ConfigurationError, match="IDEMPOTENCY_HEADER and REPORT_HEADER"):
        load(**given)
    load(IDEMPOTENCY_HEADER="x-email-ref")
