"""``sliproad testbed keygen`` and ``sign``: keys and signatures of a device's bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cnn.common.console import JsonFlag, emit_json


def keygen(
    out: Annotated[
        Path, typer.Option(help="File of the private key (PEM); the public one is OUT.pub.")
    ],
    json: JsonFlag = False,
) -> None:
    """Make a key pair (Ed25519) to sign policy files and model bundles with.

    The private key stays where policies are made, readable by its owner alone; the public key
    goes to the devices, whose configuration names it in bundles.trusted_keys.
    """
    from testbed.deploy.signing import make_key_pair

    public = out.with_name(out.name + ".pub")
    name = make_key_pair(out, public)
    typer.echo(f"key {name}: private {out}, public {public}")
    if json:
        emit_json({"key": name, "private": str(out), "public": str(public)})


def sign(
    bundles: Annotated[
        list[Path], typer.Argument(help="Policy files, or folders of model bundles.")
    ],
    key: Annotated[Path, typer.Option(help="Private key (PEM) of `sliproad testbed keygen`.")],
    json: JsonFlag = False,
) -> None:
    """Sign policy files and model bundles; each signature is written beside what it signs."""
    from testbed.deploy.signing import sign as sign_bundle

    signed = [sign_bundle(bundle, key) for bundle in bundles]
    for each in signed:
        typer.echo(f"{each.kind} {each.content_hash[:12]} signed by {each.key}: {each.signature}")
    if json:
        emit_json(
            {
                "signed": [
                    {
                        "signature": str(each.signature),
                        "kind": each.kind,
                        "content_hash": each.content_hash,
                        "key": each.key,
                    }
                    for each in signed
                ]
            }
        )
