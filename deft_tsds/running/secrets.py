"""What a run writes down about itself holds no secret: what looks like a token, key or password becomes `***`.

It goes by names (`--api-key X`, `HF_TOKEN=X`, {"password": "X"}), by the forms that known services give their keys, and
by addresses with a password or a signature in them. A number is never taken for a secret, so that `max_tokens: 64` and
`pad_token_id: 0` stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"

# The last word of a name says what its value is: `hub_token` is a token, `token_count` a count.
_SECRET = (
    r"(?:tokens?|secrets?|passwords?|passwd|passphrase|pwd|api[_.-]?keys?|access[_.-]?keys?(?:[_.-]?id)?|"
    r"private[_.-]?keys?|secret[_.-]?keys?|credentials?|authorization|bearer|cookies?|session[_.-]?(?:id|key)|"
    r"signature|sig)"
)
_NAME = re.compile(rf"(?i)(?:^|[^a-z0-9]|(?<=[a-z0-9])(?=[A-Z])){_SECRET}$")
_GIVEN = re.compile(
    rf"(?i)((?:^|(?<=[\s;&?,{{(\"']))-{{0,2}}(?:[\w.-]*[_.-])?{_SECRET}[\"']?)(\s*[=:]\s*|\s+)(\"[^\"]*\"|'[^']*'|[^\s&;,]+)"
)
_SIGNED = re.compile(rf"(?i)([?&#](?:[\w.-]*[_.-])?{_SECRET}=)[^&#\s\"']+")
# A password with a slash in it is no valid address, and would be shown all the same; a port is none.
_USER = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)(?:[^/\s@\"'?#]+|[^/\s@\"'?#:]+:(?!\d+/)[^\s@\"']+)@")
_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|"
    r"(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[\w-]{30,}|ya29\.[\w.-]{16,}|xox[abeoprs]-[\w-]{10,}|"
    r"eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)|"
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
    re.DOTALL,
)
_PLAIN = re.compile(r"(?i)[+-]?[\d.,_]+(?:e[+-]?\d+)?|true|false|none|null|\*\*\*|")


def masked_text(text: str) -> str:
    """A text, such as a command line, with `***` in place of each secret in it."""
    text = _FORMS.sub(MASK, text)
    text = _USER.sub(rf"\g<1>{MASK}@", text)
    text = _SIGNED.sub(rf"\g<1>{MASK}", text)
    return _GIVEN.sub(_hidden, text)


def masked_command(arguments: Sequence[str]) -> str:
    """A command line in one text, with `***` in place of each secret in it.

    Args:
        arguments: as `sys.argv` has them, so that a value with spaces in it is hidden whole.
    """
    shown, hide = [], False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        is_option = argument.startswith("-") and not _PLAIN.fullmatch(argument)
        if hide and not is_option:
            shown.append(argument if _PLAIN.fullmatch(argument) else MASK)
        elif equals and re.fullmatch(r"-{0,2}[\w.-]+", name) and _is_secret(name):
            shown.append(f"{name}={value if _PLAIN.fullmatch(value) else MASK}")
        else:
            shown.append(masked_text(argument))
        hide = is_option and not equals and _is_secret(name)
    return " ".join(shown)


def masked(value: Any, name: str = "") -> Any:
    """JSON values with `***` in place of each secret in them, by the name of an entry or by its form.

    Args:
        value: nested mappings, lists and texts; what else there is comes back as it is.
        name: of the entry that holds the value.
    """
    if isinstance(value, Mapping):
        return {key: masked(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(item, name) for item in value]
    if not isinstance(value, str):
        return value
    return MASK if _is_secret(name) and not _PLAIN.fullmatch(value) else masked_text(value)


def _is_secret(name: str) -> bool:
    return _NAME.search(name.rstrip("=: \"'")) is not None


def _hidden(match: re.Match[str]) -> str:
    name, between, value = match.groups()
    # "Bearer X" after "Authorization:" is masked as a name of its own; a word after a bare word is prose, not a value.
    prose = between.isspace() and not name.lstrip().startswith("-") and name.strip().lower() != "bearer"
    return match[0] if prose or _PLAIN.fullmatch(value) or value.startswith("-") else f"{name}{between}{MASK}"
