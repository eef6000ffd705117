"""How connections to brokers are encrypted and who we are to them, and what is said when they refuse it."""

from __future__ import annotations

import os
from typing import Any, Final

from confluent_kafka import KafkaError

from hivewire.errors import BackendError, SettingsError
from hivewire.settings import KafkaSettings

_HINTS: Final = ("security.protocol", "listener?")
"""In what librdkafka says of a broker that hangs up on the first request."""
_FIRST_REQUEST: Final = "APIVERSION_QUERY"
"""The state of a connection whose first request is not answered yet, in what is said of its end."""


def options(kafka: KafkaSettings) -> dict[str, Any]:
    """Those of librdkafka. Raises `SettingsError` for files that cannot be read and for what does not go together."""
    has_user = kafka.sasl_mechanism != "none"
    if has_user and not (kafka.username and kafka.password):
        raise SettingsError("kafka.sasl_mechanism: it needs kafka.username and kafka.password")
    if kafka.username and not has_user:
        raise SettingsError("kafka.username: it needs kafka.sasl_mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
    found: dict[str, Any] = {"security.protocol": ("SASL_" if has_user else "") + ("SSL" if kafka.tls else "PLAINTEXT")}
    if has_user:
        found["sasl.mechanism"] = kafka.sasl_mechanism
        found["sasl.username"] = kafka.username
        found["sasl.password"] = kafka.password.reveal()
    if kafka.tls:
        found.update(_tls(kafka))
    return found


def _tls(kafka: KafkaSettings) -> dict[str, Any]:
    if kafka.tls_cert_file is None and kafka.tls_key_file is not None:
        raise SettingsError("kafka.tls_key_file: it needs kafka.tls_cert_file, the certificate that it belongs to")
    found: dict[str, Any] = {
        "ssl.endpoint.identification.algorithm": "https" if kafka.tls_check_host else "none",
    }
    files = {
        "tls_ca_file": ("ssl.ca.location", kafka.tls_ca_file),
        "tls_cert_file": ("ssl.certificate.location", kafka.tls_cert_file),
        "tls_key_file": ("ssl.key.location", kafka.tls_key_file or kafka.tls_cert_file),
    }
    for name, (option, path) in files.items():
        if path is None:
            continue
        if not os.access(path, os.R_OK):
            raise SettingsError(f"kafka.{name}: {path!r} cannot be read")
        found[option] = path
    return found


class Refusals:
    """What brokers refused, as the clients were told behind everybody's back. Noted on threads of clients."""

    def __init__(self) -> None:
        self.last: tuple[int, str] | None = None
        """The code of the error and what was said."""
        self.hang_ups = 0
        """Connections that ended before their first request was answered."""

    def note(self, error: KafkaError) -> None:
        if error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            self.last = (error.code(), error.str())
        else:
            self.note_line(error.str())

    def note_line(self, text: str) -> None:
        """A line of the client's own log: who is hung up on is told there alone."""
        self.hang_ups += _FIRST_REQUEST in text
        if self.last is None and any(hint in text for hint in _HINTS):
            self.last = (KafkaError._TRANSPORT, text)

    def explained(self, kafka: KafkaSettings) -> BackendError | None:
        """Not worth repeating: what the broker shows and what it accepts does not change by itself."""
        if self.last is None:
            return None
        code, text = self.last
        text = text.rsplit("]: ", 1)[-1]
        where = ",".join(kafka.brokers)
        if code == KafkaError._AUTHENTICATION:
            return BackendError(
                f"connect to {where}: the broker refuses this user: {text}; check kafka.username, kafka.password and "
                "kafka.sasl_mechanism"
            )
        if "verify" in text:
            return BackendError(
                f"connect to {where}: its certificate is refused: {text}; check kafka.tls_ca_file, the certificate's "
                "dates, and that it names this host"
            )
        return BackendError(
            f"connect to {where}: {text}; check kafka.tls (is this the port for TLS?) and kafka.sasl_mechanism"
        )
