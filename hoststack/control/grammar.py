"""The grammar of the debug CLI's commands: words, values, and how a line is parsed.

Words may be abbreviated as long as they stay unambiguous, as in VPP (`sh ses`). Every error names
the wrong word, and what is expected there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Protocol

from hoststack.boundary import protocols
from hoststack.boundary.uri import UriError, parse_uri
from hoststack.sizes import parse_size

Argument = str | int | float | bool

#: Most characters of a word that an error repeats.
_SHOWN_CHARACTERS: Final = 40
#: The answer to a command that failed because of a bug.
FAULT: Final = "this command failed with an internal error: see the log"


class CommandError(Exception):
    """An invalid line, or a command that failed; the message is one line for the user."""


class WorkerGoneError(CommandError):
    """The worker that runs the command ended before or during it."""


@dataclass(frozen=True, slots=True)
class Command:
    """A parsed command. It can be pickled, and its fields are JSON."""

    name: str
    """All of its words, in full: "show session"."""
    arguments: dict[str, Argument] = field(default_factory=dict)


class Value(Protocol):
    """A variable word of a command."""

    @property
    def name(self) -> str:
        """Its name in the help."""

    @property
    def choices(self) -> tuple[str, ...]:
        """The valid words; empty if they can't be listed."""

    def read(self, word: str) -> Argument:
        """Parse a word; raises ValueError, which says what is expected."""


@dataclass(frozen=True, slots=True)
class Number:
    name: str
    least: int
    most: int
    choices: tuple[str, ...] = ()

    def read(self, word: str) -> int:
        if word.isascii() and word.isdigit() and self.least <= int(word[:20]) <= self.most:
            return int(word)
        raise ValueError(f"a number from {self.least} to {self.most}")


@dataclass(frozen=True, slots=True)
class Seconds:
    name: str = "SECONDS"
    most: float = 86400.0
    choices: tuple[str, ...] = ()

    def read(self, word: str) -> float:
        if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", word, re.ASCII):
            seconds = float(word)
            if 0 < seconds <= self.most:
                return seconds
        raise ValueError(f"seconds, more than 0 and at most {self.most:.0f}")


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes. A number has the unit of `shift` (20: MiB), unless it has a suffix (64k, 16m, 1g)."""

    name: str
    least: int
    most: int
    shift: int = 0
    choices: tuple[str, ...] = ()

    def read(self, word: str) -> int:
        with suppress(ValueError):
            size = parse_size(word, shift=self.shift)
            if self.least <= size <= self.most:
                return size
        raise ValueError(
            f"a size of {self.least} to {self.most} bytes, with or without a suffix k, m or g"
        )


@dataclass(frozen=True, slots=True)
class UriText:
    schemes: tuple[protocols.Protocol, ...]
    name: str = "URI"
    choices: tuple[str, ...] = ()

    def read(self, word: str) -> str:
        try:
            return str(parse_uri(word, self.schemes))
        except UriError as error:
            raise ValueError(f"a URI: {error}") from None


@dataclass(frozen=True, slots=True)
class Choice:
    choices: tuple[str, ...]

    @property
    def name(self) -> str:
        return "|".join(self.choices)

    def read(self, word: str) -> str:
        try:
            return match(word, self.choices)
        except CommandError:
            raise ValueError(f"one of {', '.join(self.choices)}") from None


@dataclass(frozen=True, slots=True)
class Text:
    name: str
    most_characters: int = 64
    choices: tuple[str, ...] = ()

    def read(self, word: str) -> str:
        if len(word) <= self.most_characters and word.isprintable():
            return word
        raise ValueError(f"a word of at most {self.most_characters} characters")


@dataclass(frozen=True, slots=True)
class Option:
    """A keyword, and its value."""

    keyword: str
    key: str
    """Key in Command.arguments. Of several options with the same key one may be given."""
    value: Value | None = None
    """None: the keyword alone, which means True."""
    without: Argument | None = None
    """Its meaning without a value; None if it needs one."""
    is_required: bool = False

    @property
    def usage(self) -> str:
        if self.value is None:
            text = self.keyword
        elif self.without is None:
            text = f"{self.keyword} {self.value.name}"
        else:
            text = f"{self.keyword} [{self.value.name}]"
        return text if self.is_required else f"[{text}]"


@dataclass(frozen=True, slots=True)
class Spec:
    """A command's grammar: its words, then values in order, then options in any order."""

    words: tuple[str, ...]
    help: str
    values: tuple[tuple[str, Value], ...] = ()
    """Keys and their values; all are required."""
    options: tuple[Option, ...] = ()
    rest: str | None = None
    """The key for the rest of the line as one text, parsed elsewhere. None: nothing follows."""
    needs_rest: bool = False
    rest_name: str = ""

    @property
    def name(self) -> str:
        return " ".join(self.words)

    @property
    def usage(self) -> str:
        """The whole grammar on one line."""
        parts = [*self.words, *(value.name for _, value in self.values)]
        parts += [option.usage for option in self.options]
        if self.rest is not None:
            parts.append(self.rest_name if self.needs_rest else f"[{self.rest_name}]")
        return " ".join(parts)


def shown(word: str) -> str:
    """Return a word as errors quote it."""
    return repr(word if len(word) <= _SHOWN_CHARACTERS else word[:_SHOWN_CHARACTERS] + "...")


def match(word: str, choices: Iterable[str]) -> str:
    """Return the one of `choices` that a word is, or abbreviates; raises CommandError."""
    choices = sorted(set(choices))
    if word in choices:
        return word
    found = [choice for choice in choices if choice.startswith(word)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CommandError(f"{shown(word)} is ambiguous: {', '.join(found)}")
    where = f"expected {', '.join(choices)}" if choices else "no further word is expected here"
    raise CommandError(f"unknown word {shown(word)}: {where}")


def find_spec(words: Sequence[str], specs: Sequence[Spec]) -> tuple[Spec, int]:
    """Return the command that a line's words begin with, and how many of them name it.

    Raises CommandError. No command's words are the beginning of another command's.
    """
    candidates = list(specs)
    depth = 0
    while not (len(candidates) == 1 and len(candidates[0].words) == depth):
        following = {spec.words[depth] for spec in candidates}
        if depth == len(words):
            so_far = f"{' '.join(candidates[0].words[:depth])!r}" if depth else "a command"
            raise CommandError(f"{so_far} needs another word: {', '.join(sorted(following))}")
        chosen = match(words[depth], following)
        candidates = [spec for spec in candidates if spec.words[depth] == chosen]
        depth += 1
    return candidates[0], depth


def read_arguments(spec: Spec, words: Sequence[str]) -> dict[str, Argument]:
    """Parse the words after a command's name; raises CommandError."""
    arguments: dict[str, Argument] = {}
    position = 0
    for key, value in spec.values:
        arguments[key] = _read_value(spec.name, value, words[position : position + 1])
        position += 1
    if spec.rest is not None:
        rest = " ".join(words[position:])
        if spec.needs_rest and not rest:
            raise CommandError(f"{spec.name!r} needs more words: {spec.usage}")
        return arguments | {spec.rest: rest}
    while position < len(words):
        option = _option(spec, words[position])
        position += 1
        if option.key in arguments:
            raise CommandError(f"{option.keyword!r} is given twice, or conflicts with another word")
        following = words[position : position + 1]
        if option.value is None:
            arguments[option.key] = True
        elif option.without is not None and not (following and following[0][0].isdigit()):
            arguments[option.key] = option.without
        else:
            arguments[option.key] = _read_value(option.keyword, option.value, following)
            position += 1
    for option in spec.options:
        if option.is_required and option.key not in arguments:
            raise CommandError(f"{spec.name!r} needs {option.usage}: {spec.usage}")
    return arguments


def _option(spec: Spec, word: str) -> Option:
    keyword = match(word, [option.keyword for option in spec.options])
    return next(option for option in spec.options if option.keyword == keyword)


def _read_value(after: str, value: Value, words: Sequence[str]) -> Argument:
    if not words:
        raise CommandError(f"{after!r} needs another word: {value.name}")
    try:
        return value.read(words[0])
    except ValueError as error:
        raise CommandError(f"{shown(words[0])} after {after!r}: expected {error}") from None


def completions(line: str, specs: Sequence[Spec]) -> list[str]:
    """Return completions of a line's last word, or of the next word after a trailing space."""
    words = line.split()
    partial = words.pop() if words and not line[-1].isspace() else ""
    return sorted(word for word in _following(words, specs) if word.startswith(partial))


def _following(words: Sequence[str], specs: Sequence[Spec]) -> set[str]:
    """Return what may follow these words; empty if they begin no command."""
    candidates = list(specs)
    for depth, word in enumerate(words):
        if len(candidates) == 1 and len(candidates[0].words) == depth:
            return _following_arguments(candidates[0], words[depth:])
        try:
            chosen = match(word, [spec.words[depth] for spec in candidates])
        except CommandError:
            return set()
        candidates = [spec for spec in candidates if spec.words[depth] == chosen]
    if len(candidates) == 1 and len(candidates[0].words) == len(words):
        return _following_arguments(candidates[0], ())
    return {spec.words[len(words)] for spec in candidates}


def _following_arguments(spec: Spec, words: Sequence[str]) -> set[str]:
    if len(words) < len(spec.values):
        return set(spec.values[len(words)][1].choices)
    position = len(spec.values)
    given: set[str] = set()
    while position < len(words):
        try:
            option = _option(spec, words[position])
        except CommandError:
            return set()
        given.add(option.key)
        position += 1
        if option.value is not None:
            if position < len(words) and (option.without is None or words[position][0].isdigit()):
                position += 1
            elif position == len(words) and option.without is None:
                return set(option.value.choices)
    return {option.keyword for option in spec.options if option.key not in given}
