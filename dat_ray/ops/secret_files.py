"""Which files look like a secret, by their names and by what they hold: none of them goes to a cluster with a job."""

from __future__ import annotations

import os
import re
from fnmatch import fnmatch
from pathlib import PurePosixPath

from dat_ray.secrets import secrets_in, token_in

# Folders in which programs keep keys. Names are compared without regard to case.
_FOLDERS = {
    ".ssh": "keys of ssh",
    ".gnupg": "keys of GnuPG",
    ".aws": "credentials of AWS",
    ".azure": "credentials of Azure",
    ".kube": "credentials of Kubernetes",
    ".docker": "credentials of registries",
    ".huggingface": "a token of the hub",
    "gcloud": "credentials of Google Cloud",
}
_NAMES = {
    ("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"): "a key of ssh",
    ("*.pem", "*.key", "*.ppk", "*.p8", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.kdb"): "a key or a store of keys",
    (".netrc", "_netrc", ".git-credentials", ".pgpass", ".my.cnf", ".s3cfg", ".boto", ".dockercfg", ".htpasswd"): "credentials",
    ("kubeconfig", "*.kubeconfig", "kubeconfig.y*ml"): "credentials of Kubernetes",
    (".envrc", ".env", ".env.*", "*.env", "*.env.local"): "variables of an environment",
    ("hf_token", ".hf_token", "huggingface_token"): "a token of the hub",
}
_NO_SECRET = ("*.pub", "*.env.example", "*.env.sample", "*.env.template", "*.env.dist")
# Paths that end so: the name alone says nothing.
_PATHS = {"huggingface/token": "a token of the hub", "huggingface/stored_tokens": "tokens of the hub"}

_CONTENT = {
    re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|^PuTTY-User-Key-File-", re.MULTILINE): "a private key",
    re.compile(rb'"private_key"\s*:\s*"[^"]{16,}"'): "the key of a service account",
    re.compile(rb"^\s*client-key-data:\s*\S{16,}", re.MULTILINE): "credentials of Kubernetes",
    # The key's name stands alone in many a text, the key behind it nowhere but in credentials.
    re.compile(
        rb"aws_?secret_?access_?key[\"']?\s*[:=,]\s*[\"']?[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])", re.IGNORECASE
    ): "a key of AWS",
    re.compile(rb'"(?:client_secret|refresh_token)"\s*:\s*"[^"\s]{16,}"'): "credentials of an account",
}
# What only files of one name are asked for: elsewhere it is an example, or a word.
_CONTENT_OF = {
    ".npmrc": (re.compile(rb"_(?:authToken|auth|password)\s*=\s*(?!\$\{)\S"), "a registry's token"),
    ".pypirc": (re.compile(rb"^\s*password\s*[:=]\s*\S", re.MULTILINE), "a registry's token"),
    "pip.conf": (re.compile(rb"://[^/\s:@]+:[^/\s@]+@"), "a registry's password"),
    "config.json": (re.compile(rb'"auths"\s*:\s*\{[^}]*"auth"\s*:'), "credentials of registries"),
}
_KUBECONFIG = (re.compile(rb"^kind:\s*Config\s*$", re.MULTILINE), re.compile(rb"^\s*token:\s*\S{16,}", re.MULTILINE))


def secret_by_name(path: str) -> str | None:
    """What a file of this relative path would hold, or None where nothing speaks for a secret."""
    lowered = path.lower()
    place = PurePosixPath(lowered)
    if any(fnmatch(place.name, pattern) for pattern in _NO_SECRET):
        return None
    for folder in place.parts[:-1]:
        if folder in _FOLDERS:
            return _FOLDERS[folder]
    for patterns, what in _NAMES.items():
        if any(fnmatch(place.name, pattern) for pattern in patterns):
            return what
    return next((what for end, what in _PATHS.items() if f"/{lowered}".endswith(f"/{end}")), None)


def secret_in_content(data: bytes, name: str = "") -> str | None:
    """What secret some bytes hold, those of a file called `name`; None where there is none.

    Besides the forms of known keys and tokens, values of this process' environment that are secret by their variable's name.
    """
    for form, what in _CONTENT.items():
        if form.search(data):
            return what
    text = data.decode("utf-8", "replace")
    if token := token_in(text):
        return token
    if all(form.search(data) for form in _KUBECONFIG):
        return "credentials of Kubernetes"
    form_of_name, what = _CONTENT_OF.get(name.lower(), (None, ""))
    if form_of_name is not None and form_of_name.search(data):
        return what
    held = [variable for variable in secrets_in(text) if variable in os.environ]
    return f"the value of {held[0]}" if held else None
