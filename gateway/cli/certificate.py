"""`hostler certificate`: a certificate for a supervisor, and the lines that make gateways accept it and nothing else."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from hostler.gateway.cli.options import JsonOption, cannot_write, fail, print_json
from hostler.gateway.cli.start_options import FAILED, USAGE

_DAYS = 10 * 365


def certificate(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of this machine. Default: its host name.")
    ] = None,
    addresses: Annotated[
        list[str] | None, typer.Option("--address", help="Further name or address of it; repeatable.")
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", help="Where to write the files.")] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Create a self-signed certificate for TLS.

    The key stays on this machine; gateways get a copy of the certificate, and accept no other one.
    """
    import socket

    own = (name or socket.gethostname()).lower()
    names = list(dict.fromkeys((own, *(addresses or ()), "localhost", "127.0.0.1")))
    if any(not each or not all(char.isalnum() or char in ".-_:" for char in each) for each in names):
        fail("NAME and --address are host names or addresses", USAGE)
    cert, key = folder / f"{own}.crt", folder / f"{own}.key"
    for path in (cert, key):
        if path.exists():
            fail(f"{path} exists; remove it first, or use another name or --folder", FAILED)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        create_certificate(cert, key, names)
    except OSError as error:
        cannot_write(cert, error)
    except CertificateNotMade as error:
        fail(str(error), FAILED)
    if as_json:
        print_json({"name": own, "cert": str(cert), "key": str(key), "names": names})
        return
    typer.echo(
        f"""created {cert} and {key}

On this machine, in its configuration file:

  supervisor:
    tls: {{cert: {cert}, key: {key}}}

On each gateway, after copying {cert} there:

  backends:
    {own}: {{kind: supervisor, url: "https://{own}:8080", certificate: {cert.name}, token_file: …}}"""
    )


class CertificateNotMade(Exception):
    """openssl is missing or failed; the message says which."""


def create_certificate(cert: Path, key: Path, names: list[str]) -> None:
    """Write a certificate for these names, and its key, readable by its owner only.

    Raises `CertificateNotMade` and `OSError`.
    """
    program = shutil.which("openssl")
    if program is None:
        raise CertificateNotMade("this command needs the program openssl; install it")
    alternatives = ",".join(f"{_kind(name)}:{name}" for name in names)
    with tempfile.TemporaryDirectory(dir=cert.parent, prefix=".certificate-") as folder:  # readable by its owner only
        made_cert, made_key = Path(folder) / "cert", Path(folder) / "key"
        arguments = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256"]
        arguments += ["-days", str(_DAYS), "-subj", f"/CN={names[0]}", "-addext", f"subjectAltName={alternatives}"]
        arguments += ["-keyout", str(made_key), "-out", str(made_cert)]
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            *_, reason = (f"exit code {done.returncode}", *done.stderr.strip().splitlines())
            raise CertificateNotMade(f"openssl failed: {reason}")
        made_key.chmod(0o600)
        made_cert.chmod(0o644)
        os.link(made_key, key)  # unlike a rename, this never replaces a file
        made_cert.rename(cert)


def _kind(name: str) -> str:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "DNS"
    return "IP"
