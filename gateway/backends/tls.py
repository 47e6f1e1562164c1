"""TLS contexts for connections to backends, from their settings and the environment's certificates."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path

from hostler.adapters.errors import BackendUnavailable
from hostler.gateway.backends.transport import TlsOptions

DEFAULT_TLS = TlsOptions()
#: Variables that replace the system's certificates.
_FILE, _DIRECTORY = "SSL_CERT_FILE", "SSL_CERT_DIR"


def tls_context(options: TlsOptions, backend: str, environ: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """A context for connections to `backend`. Raises `BackendUnavailable` with the reason; blocks.

    Trusted are the certificates in `ca_file`, else those of the environment, else the system's and Mozilla's.
    """
    problem = tls_problem(options, environ)
    if problem is not None:
        raise BackendUnavailable(f'backend "{backend}" cannot be reached: {problem}', backend=backend)
    # Not `ssl.create_default_context`: it fails if SSLKEYLOGFILE cannot be written.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        _trust(context, options, environ)
        if options.client_cert_file is not None:
            context.load_cert_chain(options.client_cert_file, options.client_key_file, password="")
    except (OSError, ValueError) as error:
        reason = f"its certificates cannot be used: {_reason(error)}"
        raise BackendUnavailable(f'backend "{backend}" cannot be reached: {reason}', backend=backend) from None
    return context


def tls_problem(options: TlsOptions, environ: Mapping[str, str] = os.environ) -> str | None:
    """The file that is missing, with the setting or variable that names it; `None` if there is none."""
    named = {key: getattr(options, key) for key in ("client_cert_file", "client_key_file")}
    if not options.insecure:
        named["ca_file"] = options.ca_file
        if options.ca_file is None:
            named |= {_FILE: environ.get(_FILE), _DIRECTORY: environ.get(_DIRECTORY)}
    for key, path in named.items():
        if not path:
            continue
        places = path.split(os.pathsep) if key == _DIRECTORY else [path]
        exists = Path.is_dir if key == _DIRECTORY else Path.is_file
        if not any(exists(Path(place)) for place in places):
            what = "folder" if key == _DIRECTORY else "file"
            return f"{key} names {path}, but there is no such {what}"
        if key != _DIRECTORY and not os.access(path, os.R_OK):
            return f"{key} names {path}, which cannot be read"
    return None


def certificate_reason(error: BaseException | None) -> str | None:
    """Why a server's certificate was rejected, by an error or those that led to it; `None` if it was not."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate is not valid: {error.verify_message}"
        error = error.__cause__ or error.__context__
    return None


def _trust(context: ssl.SSLContext, options: TlsOptions, environ: Mapping[str, str]) -> None:
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif options.ca_file is not None:
        context.load_verify_locations(cafile=options.ca_file)
    elif environ.get(_FILE) or environ.get(_DIRECTORY):
        context.load_verify_locations(cafile=environ.get(_FILE) or None, capath=environ.get(_DIRECTORY) or None)
    else:
        context.load_default_certs()
        if (bundle := _mozilla()) is not None:
            context.load_verify_locations(cafile=bundle)


def _mozilla() -> str | None:
    """Mozilla's certificates, for systems without any."""
    try:
        import certifi
    except ImportError:
        return None
    return certifi.where()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
