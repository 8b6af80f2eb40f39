"""Addresses: no part of a password is said, whoever repeats the address; what is no secret stays."""

from __future__ import annotations

import pytest

from facerec.runtime.database_url import (
    OF_MESSAGE,
    account,
    account_to_move,
    hide,
    with_driver,
    without_password,
    without_secrets,
)

SECRET = [
    "postgresql://me:hush-hush@host/db",
    "postgresql+psycopg2://me@srv:hush/hush@host:5432/db",
    "postgresql://me:hush@hush@host/db",
    "postgresql://me:hush hush@host/db",
    "postgresql://me:hush%2Fhush@host/db?sslmode=require",
    "postgresql://me:hush?hush#hush@host/db",
    "http://me:hush@host:5000/path",
    "https://:hush@host",
    "https://hush@host/path",
    "http://hush@hush@host",
    "postgresql://host/db?user=me&password=hush hush",
    "postgresql://host/db?user=me&PWD=hush&passwd=hush&sslpassword=hush",
    "mysql://host/db?access_token=hush&api_key=hush&client-secret=hush",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BUID%3Dme%3BPWD%3Dhush%3Bhush",
]
REPEATED = (
    "cannot connect to {}: refused",
    "Could not parse SQLAlchemy URL from given URL string '{}'",
    "API request to {}/api/2.0/mlflow/runs/log-batch failed with exception HTTPConnectionPool",
)


@pytest.mark.parametrize("uri", SECRET)
def test_no_password_is_said(uri):
    shown = without_password(uri)
    assert "hush" not in shown and "***" in shown
    assert shown.split("://")[0] == uri.split("://")[0] and without_password(shown) == shown
    for message in REPEATED:
        told = without_secrets(message.format(uri), uri)
        assert "hush" not in told and told.startswith(message.split("{")[0])


def test_a_parser_that_takes_a_password_for_a_host_tells_no_piece_of_it():
    uri = "postgresql://me:hush@psst@host/db"
    assert "psst" not in without_secrets('could not translate host name "psst@host"', uri)
    told = without_secrets("no host h/ush, password hu%2Fsh", "http://me:h%2Fush@host")
    assert told.startswith("no host ***")


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"])
def test_what_mlflow_is_given_in_its_variables_is_not_repeated(monkeypatch, name):
    monkeypatch.setenv(name, "hush-hush")
    assert without_secrets("401 for Bearer hush-hush") == "401 for Bearer ***"


def test_addresses_that_nobody_told_of():
    for text in (
        "no route to http://me:pst@host/x",
        "bad host me:pst@host/db",
        "password=pst host=h",
        "no host me:p/pst:pst@host",
        "no host postgresql://me@srv:p/pst@host",
        "no host at https://pst@host",
    ):
        assert "pst" not in without_secrets(text)


@pytest.mark.parametrize(
    "uri", ["outputs/a.journal", "models:/faces@champion", "http://host:80/a", "databricks", "s3://bucket/a"]
)  # fmt: skip
def test_what_is_no_secret_stays(uri):
    assert without_password(uri) == with_driver(uri) == uri
    message = f"{uri} is refused: Param with key='lr' was already logged at 12:30"
    assert without_secrets(message, uri) == message
    assert account(uri) == (uri, "", "")


@pytest.mark.parametrize(
    "piece", ["token-", "-token", "a-", "a:", "://", "http://", "http://a", "x@", "%3D", "key_", "p=&"]
)  # fmt: skip
def test_hostile_text_takes_time_in_proportion_to_its_length(piece):
    text = piece * (100_000 // len(piece))  # with steps in its square this would not return
    assert hide(text, OF_MESSAGE) == text
    assert (
        len(without_secrets(text)) <= 2 * 4096
        and without_secrets(text + " x:hush@h").count("hush") == 0
    )


def test_an_account_is_moved_only_where_it_is_read_in_one_way():
    assert account_to_move("http://me:hu%2Fsh@h:1/a") == ("http://h:1/a", "me", "hu%2Fsh")
    for uri in (
        "http://host:5000/team@x",
        "http://me:hu/sh@host",
        "http://me:a@b/@c",
        "http://[a:b@c",
    ):
        assert account_to_move(uri) == (uri, "", "")
