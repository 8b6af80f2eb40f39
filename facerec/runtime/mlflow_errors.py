"""Why MLflow did not do what it was asked, in one sentence: its store is away, lets us not in, or refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator

import mlflow
import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import (
    DataError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)

from facerec.runtime.database_url import without_password, without_secrets
from facerec.runtime.text import one_line

AWAY = (requests.ConnectionError, requests.Timeout, ConnectionError, TimeoutError)
# Of a proxy, or a server that is overloaded.
LATER = re.compile(r"failed with error code (?:408|429|5\d\d)\b|too many \d+ error responses")
TOO_LONG = re.compile(r"failed with error code 413\b")
# What an entry's contents come to: in Python, and in a database.
OURS = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError)
OF_CONTENTS = (DataError, IntegrityError)
NOT_LET_IN = ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED")
REFUSED = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE")
STATEMENT = re.compile(r"\s*(\[SQL:|\(Background on this error).*", re.DOTALL)


def trouble(error: BaseException) -> str:
    """The sentence for an error of MLflow, its database's or its server's client."""
    store = f"MLflow's tracking store {without_password(mlflow.get_tracking_uri())}"
    reason = reason_of(error)[:300].rstrip(" .")
    if is_away(error):
        return f"{store} does not answer: {reason}; start it, try again later, or set MLFLOW_TRACKING_URI"
    if getattr(error, "error_code", None) in NOT_LET_IN:
        return (
            f"{store} denies access: {reason}; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN, to an account that has the permission"
        )
    if isinstance(error, MlflowException) and not database_error(error):
        return f"{store} refuses: {reason}"
    return f"{store} cannot be used: {reason}; set MLFLOW_TRACKING_URI to one that can"


def reason_of(error: BaseException) -> str:
    """What an error says, without passwords and SQL."""
    return without_secrets(STATEMENT.sub("", one_line(error)), mlflow.get_tracking_uri())


def is_away(error: BaseException) -> bool:
    """Whether nobody has answered, or only that it is to be tried later, as opposed to: the answer was no."""
    if getattr(error, "error_code", None) in REFUSED:  # whatever came before it
        return False
    for one in chain(error):
        if isinstance(one, AWAY) or LATER.search(str(one)):
            return True
        if isinstance(one, (OperationalError, InterfaceError)):
            return not mlflow.get_tracking_uri().startswith("sqlite")
    return False


def is_final(error: BaseException) -> bool:
    """Whether what was sent will never be taken, as it is: not where time or an administrator may mend it."""
    cause = error.__cause__
    if isinstance(cause, SQLAlchemyError):  # MLflow makes a BAD_REQUEST of a closed connection, too
        return isinstance(cause, OF_CONTENTS) or isinstance(getattr(cause, "orig", None), OURS)
    if isinstance(error, MlflowException):
        named = error.error_code in REFUSED or TOO_LONG.search(str(error)) is not None
        return named or isinstance(cause, OURS)
    # Those of requests that are a ValueError are an OSError, too.
    return isinstance(error, OURS) and not isinstance(error, OSError)


def database_error(error: BaseException) -> bool:
    """Whether a database stands behind an error."""
    return any(isinstance(one, SQLAlchemyError) for one in chain(error))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
