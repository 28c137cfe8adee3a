"""`session rule` and `app ns`, in one worker."""

from __future__ import annotations

from hoststack.boundary.scope import SCOPES
from hoststack.control.grammar import Command, CommandError
from hoststack.control.worker_side import Data, WorkerSide
from hoststack.session.namespaces import Namespaces
from hoststack.session.rules import RuleError


async def session_rule_add(command: Command, side: WorkerSide) -> Data:
    try:
        side.worker.layer.rules.add(str(command.arguments["rule"]))
    except RuleError as error:
        raise CommandError(str(error)) from None
    return {}


async def session_rule_del(command: Command, side: WorkerSide) -> Data:
    try:
        side.worker.layer.rules.delete(str(command.arguments["rule"]))
    except RuleError as error:
        raise CommandError(str(error)) from None
    return {}


async def session_rule_show(command: Command, side: WorkerSide) -> Data:
    return {"rules": side.worker.layer.rules.lines()}


async def app_ns_add(command: Command, side: WorkerSide) -> Data:
    add_namespace(side.worker.layer.namespaces, command)
    return {"id": command.arguments["id"]}


def add_namespace(namespaces: Namespaces, command: Command) -> None:
    """Add or change the namespace of `app ns add`; raises CommandError."""
    arguments = command.arguments
    scope = str(arguments.get("scope", "all"))
    scopes = SCOPES if scope == "all" else {scope}
    try:
        namespaces.add(str(arguments["id"]), str(arguments["secret"]), scopes)
    except ValueError as error:
        raise CommandError(str(error)) from None
