"""Names of images, as `registry.example:5000/team/app:1.0`."""

from __future__ import annotations

import re

# The reference grammar of the distribution project: https://distribution.github.io/reference/
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_NAME = re.compile(
    rf"(?P<repository>(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][-.A-Za-z0-9_]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
MAX_LENGTH = 512


def normalize(name: str) -> str:
    """The name with its tag spelled out: without tag and digest, `:latest` is meant.

    Raises:
        ValueError: it is not an image name; the message is Kubernetes' own for InvalidImageName.
    """
    match = _NAME.fullmatch(name) if len(name) <= MAX_LENGTH else None
    if match is None:
        raise ValueError(f'couldn\'t parse image name "{name[:80]}": invalid reference format')
    return name if match["tag"] or match["digest"] else f"{name}:latest"


def base(name: str) -> str:
    """The last component of the repository: what a module from this image is called in argv[0]."""
    match = _NAME.fullmatch(name)
    return match["repository"].rsplit("/", 1)[-1] if match else name
