"""What a store will never take, as opposed to what it may take later."""

from __future__ import annotations

import sqlite3

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException, get_error_code
from sqlalchemy import exc

from facerec.runtime.mlflow_errors import is_away, is_final

RETRIED = "API request to http://h failed with exception (Caused by ResponseError('too many {} error responses'))"
ANSWERED = "API request to endpoint /log-batch failed with error code {} != 200. Response body: ''"


def of_database(error: exc.SQLAlchemyError, code: str) -> MlflowException:
    """An error as MLflow makes it of one of its database."""
    made = RestException({"error_code": code, "message": str(error)})
    made.__cause__ = error
    return made


def statement(kind: type[exc.DBAPIError], text: str) -> exc.DBAPIError:
    return kind("INSERT", {}, sqlite3.Error(text))


LATER = [
    *(MlflowException(RETRIED.format(code)) for code in (408, 429, 500, 502, 503, 504)),
    *(MlflowException(ANSWERED.format(code), get_error_code(code)) for code in (408, 429, 500, 503)),
]  # fmt: skip
MENDED_BY_SOMEBODY = [
    *(MlflowException(ANSWERED.format(code), get_error_code(code)) for code in (401, 403, 404)),
    of_database(statement(exc.OperationalError, "database is locked"), "TEMPORARILY_UNAVAILABLE"),
    of_database(statement(exc.OperationalError, "database or disk is full"), "TEMPORARILY_UNAVAILABLE"),
    of_database(statement(exc.InterfaceError, "connection already closed"), "BAD_REQUEST"),
    of_database(exc.TimeoutError("QueuePool limit of size 5 overflow 10 reached"), "BAD_REQUEST"),
    requests.exceptions.JSONDecodeError("a page of a proxy", "", 0),
    RestException({"error_code": "RESOURCE_EXHAUSTED", "message": "slower"}),
    OSError(28, "No space left on device"),
]  # fmt: skip
FINAL = [
    *(RestException({"error_code": code}) for code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")),
    *(MlflowException(ANSWERED.format(code), get_error_code(code)) for code in (400, 413)),
    of_database(statement(exc.DataError, "value too long"), "BAD_REQUEST"),
    TypeError("no number"),
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
]


@pytest.mark.parametrize("error", LATER, ids=str)
def test_a_store_that_is_overloaded_is_waited_for(error):
    assert is_away(error) and not is_final(error)


@pytest.mark.parametrize("error", MENDED_BY_SOMEBODY, ids=str)
def test_what_somebody_can_mend_is_waited_for(error):
    assert not is_final(error)


@pytest.mark.parametrize("error", FINAL, ids=str)
def test_what_will_never_be_taken_is_final(error):
    assert is_final(error) and not is_away(error)
