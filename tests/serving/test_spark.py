"""A logged model in Spark: rows stay with their images, in batches larger than a server's requests."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest

from facerec import FaceEmbedder
from facerec.tracking.registry import log_model
from tests.helpers.models import encoded, make_model, picture

pytest.importorskip("pyspark", reason="no pyspark: pip install -e '.[spark]'")
if shutil.which("java") is None:
    pytest.skip("no java, which pyspark needs", allow_module_level=True)

from pyspark.sql import SparkSession
from pyspark.sql.functions import struct


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    for name in ("host", "bindAddress"):
        builder = builder.config(f"spark.driver.{name}", "127.0.0.1")
    session = builder.getOrCreate()
    yield session
    session.stop()


def test_embeddings_and_verdicts_in_spark(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACEREC_SCAN", "reference")
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "model")
    with mlflow.start_run() as run:
        log_model(tmp_path / "model", run.info.run_id)
    uri = f"runs:/{run.info.run_id}/model"
    files = [encoded(picture(seed)) for seed in range(5)]
    expected = FaceEmbedder.load(tmp_path / "model", "cpu").embed(files)
    images = [base64.b64encode(file).decode() for file in files]

    embed = mlflow.pyfunc.spark_udf(spark, uri, result_type="array<float>", env_manager="local")
    rows = [(i, images[i % 5]) for i in range(1100)]
    frame = spark.createDataFrame(rows, ["row", "image"]).coalesce(1)
    for row in frame.withColumn("embedding", embed("image")).collect():
        assert np.allclose(row.embedding, expected[row.row % 5], atol=1e-5), row.row

    kinds = "similarity double, probability double, same_person boolean"
    compare = mlflow.pyfunc.spark_udf(spark, uri, result_type=kinds, env_manager="local")
    rows = [(i, images[i], images[2 * i % 5]) for i in range(5)]
    frame = spark.createDataFrame(rows, ["row", "image_a", "image_b"])
    for row in frame.withColumn("verdict", compare(struct("image_a", "image_b"))).collect():
        cosine = float(expected[row.row] @ expected[2 * row.row % 5])
        assert row.verdict.similarity == pytest.approx(cosine, abs=1e-5)
        assert row.verdict.same_person is (cosine >= 0.5)
