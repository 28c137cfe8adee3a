"""Session rules: which connections are allowed, by the addresses and ports of both ends.

As in VPP's session rules table, a rule has a transport, a scope, a namespace, a local and a remote
prefix with ports, and an action. If several rules match a connection, the most specific one
decides: the longest remote prefix, then the longest local one, then a remote port, then a local
one, then a single scope. If no rule matches, the connection is allowed. "Local" is this side for
both outgoing and incoming connections.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final, Literal, get_args

from hoststack.boundary.protocols import PROTOCOLS, Protocol
from hoststack.boundary.scope import DEFAULT_NAMESPACE, Scope

Action = Literal["allow", "deny"]
RuleScope = Literal["local", "global", "all"]

_TRANSPORTS: Final = tuple(PROTOCOLS)
_FORM: Final = (
    "write [appns ID] [scope local|global|all] proto quic|tcp|udp LOCAL/LENGTH PORT REMOTE/LENGTH "
    "PORT action allow|deny [tag TAG], with port 0 for any"
)


class RuleError(ValueError):
    """A rule that is invalid, or does not exist; the message says why."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One session rule. Port 0 is any port."""

    local: IPv4Network | IPv6Network
    local_port: int
    remote: IPv4Network | IPv6Network
    remote_port: int
    action: Action = "allow"
    namespace: str = DEFAULT_NAMESPACE
    scope: RuleScope = "all"
    transport: str = "quic"
    tag: str = ""

    def matches(
        self,
        scope: Scope,
        namespace: str,
        local: tuple[str, int],
        remote: tuple[str, int],
        transport: Protocol,
    ) -> bool:
        """Return whether the rule matches a connection between these endpoints."""
        return (
            self.transport == transport
            and self.scope in ("all", scope)
            and self.namespace == namespace
            and ip_address(remote[0]) in self.remote
            and ip_address(local[0]) in self.local
            and self.remote_port in (0, remote[1])
            and self.local_port in (0, local[1])
        )

    @property
    def rank(self) -> tuple[int, int, bool, bool, bool]:
        """Sort key: the more specific rule has the higher rank."""
        return (
            self.remote.prefixlen,
            self.local.prefixlen,
            bool(self.remote_port),
            bool(self.local_port),
            self.scope != "all",
        )

    def __str__(self) -> str:
        return (
            f"appns {self.namespace} scope {self.scope} proto {self.transport} "
            f"{self.local} {self.local_port} {self.remote} {self.remote_port} action {self.action}"
            + (f" tag {self.tag}" if self.tag else "")
        )


def parse_rule(text: str, *, needs_action: bool = True) -> Rule:
    """Parse the arguments of `session rule add`; raises RuleError."""
    words = text.split()
    options = _take_options(words)
    if len(words) != 4:
        raise RuleError(f"{text!r} has no two prefixes with a port each: {_FORM}")
    local, remote = _prefix(words[0]), _prefix(words[2])
    if local.version != remote.version:
        raise RuleError(f"{local} and {remote} are not of one IP version: {_FORM}")
    if "proto" not in options:
        raise RuleError(f"{text!r} names no transport: {_FORM}")
    if needs_action and "action" not in options:
        raise RuleError(f"{text!r} has no action: {_FORM}")
    action: Action = "deny" if options.get("action") in ("deny", "drop") else "allow"
    scope: RuleScope = next(s for s in get_args(RuleScope) if s == options.get("scope", "all"))
    return Rule(
        local,
        _port(words[1]),
        remote,
        _port(words[3]),
        action=action,
        namespace=options.get("appns", DEFAULT_NAMESPACE),
        scope=scope,
        transport=options["proto"],
        tag=options.get("tag", ""),
    )


#: Allowed values of each option; None: any word.
_OPTIONS: Final[dict[str, tuple[str, ...] | None]] = {
    "appns": None,
    "scope": get_args(RuleScope),
    "proto": _TRANSPORTS,
    "action": ("allow", "deny", "drop"),
    "tag": None,
}


def _take_options(words: list[str]) -> dict[str, str]:
    """Remove options and their values from the words of a rule, and return them."""
    options: dict[str, str] = {}
    rest: list[str] = []
    left = iter(words)
    for word in left:
        if word not in _OPTIONS:
            rest.append(word)
            continue
        value, allowed = next(left, None), _OPTIONS[word]
        if value is None or word in options or (allowed is not None and value not in allowed):
            which = "|".join(allowed) if allowed is not None else "a word"
            raise RuleError(f"{word} takes {which}, once, not {value!r}: {_FORM}")
        options[word] = value
    words[:] = rest
    return options


def _prefix(word: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(word)
    except ValueError as error:
        raise RuleError(f"{word!r} is no prefix ({error}): {_FORM}") from None


def _port(word: str) -> int:
    if not (word.isascii() and word.isdigit()) or int(word[:6]) > 65535:
        raise RuleError(f"{word!r} is no port from 0 to 65535: {_FORM}")
    return int(word)


class Rules:
    """The rules of one worker."""

    def __init__(self) -> None:
        self._rules: dict[Rule, Rule] = {}

    def add(self, text: str) -> None:
        """Add a rule, and replace one that matches the same connections; raises RuleError."""
        rule = parse_rule(text)
        self._rules[_key(rule)] = rule

    def delete(self, text: str) -> None:
        """Delete the rule that matches the same connections, whatever its action and tag; raises
        RuleError."""
        rule = parse_rule(text, needs_action=False)
        if self._rules.pop(_key(rule), None) is None:
            raise RuleError(f"there is no such rule: {text!r}")

    def lines(self) -> list[str]:
        """Return the rules, the most specific first, each in the form that `add` parses."""
        return [str(rule) for rule in sorted(self._rules.values(), key=_rank, reverse=True)]

    def denial(
        self,
        scope: Scope,
        namespace: str,
        local: tuple[str, int],
        remote: tuple[str, int],
        transport: Protocol = "quic",
    ) -> str | None:
        """Return one line that says why a connection is forbidden; None if it is allowed."""
        if not self._rules:
            return None
        matching = [
            rule
            for rule in self._rules.values()
            if rule.matches(scope, namespace, local, remote, transport)
        ]
        rule = max(matching, key=_rank, default=None)
        if rule is None or rule.action == "allow":
            return None
        return f"a session rule forbids it: {rule}"


def _key(rule: Rule) -> Rule:
    return replace(rule, action="allow", tag="")


def _rank(rule: Rule) -> tuple[int, int, bool, bool, bool]:
    return rule.rank
