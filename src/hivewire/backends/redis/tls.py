"""How connections are encrypted, and what is said when they cannot be."""

from __future__ import annotations

import ssl

from hivewire.errors import BackendError, SettingsError
from hivewire.settings import RedisSettings


def context(settings: RedisSettings) -> ssl.SSLContext | None:
    """None: not encrypted. Files are read anew for each connection, so that certificates may be renewed."""
    if not settings.tls:
        return None
    try:
        made = ssl.create_default_context(cafile=settings.tls_ca_file)
    except OSError as error:
        raise SettingsError(f"redis.tls_ca_file: {settings.tls_ca_file!r} cannot be used: {error}") from None
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if not settings.tls_check_host:
        made.check_hostname = False
    if settings.tls_cert_file is None and settings.tls_key_file is not None:
        raise SettingsError("redis.tls_key_file: it needs redis.tls_cert_file, the certificate that it belongs to")
    if settings.tls_cert_file is not None:
        try:
            made.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
        except OSError as error:
            raise SettingsError(f"redis.tls_cert_file: {settings.tls_cert_file!r} cannot be used: {error}") from None
    return made


def distrust(error: ssl.SSLError, where: str) -> BackendError:
    """Not worth repeating: what the server shows, or whether it speaks TLS, does not change by itself."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return BackendError(
            f"connect to {where}: its certificate is refused: {error.verify_message}; check redis.tls_ca_file,"
            " the certificate's dates, and that it names this host"
        )
    return BackendError(
        f"connect to {where}: no TLS with what answers there: {error.reason or error}; a server without TLS is"
        " redis://, one that asks for a certificate needs redis.tls_cert_file"
    )
