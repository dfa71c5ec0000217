"""A server of the S3 protocol on loopback, in this process, with outages on demand."""

import logging
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import boto3
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)
KEY, SECRET = "key-of-the-store", "s3cret-of-the-store"
REFUSAL = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class ObjectStore:
    """Starts with one bucket, `studies`. While `refuses_writes` is set, whatever would change an object is refused;
    while `refuses_reads` is, all else."""

    def __init__(self) -> None:
        self.refuses_writes = self.refuses_reads = False
        self.refused = 0
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.client = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket="studies")

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach the store."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Makes this process, and those that it starts, use the store."""
        for name, value in self.environment.items():
            patch.setenv(name, value)

    def listing(self, prefix: str = "") -> list[str]:
        """Names of all objects below a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="studies", Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def _serve(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        writes = environ["REQUEST_METHOD"] in ("PUT", "POST", "DELETE")
        if self.refuses_writes if writes else self.refuses_reads:
            self.refused += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [REFUSAL]
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(10)

    def __enter__(self) -> "ObjectStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
