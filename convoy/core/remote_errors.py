"""Errors of object stores in plain words: what failed, what the server said, and the fix.

    failure = judged(error, "s3://bucket/data")
    failure.is_transient                      # try again
    raise failure.error("s3://bucket/data")   # FileNotFoundError, UsageError, DataError or ConvoyError

Each store's library raises errors of its own, which often hide the cause in a chain. They are judged by HTTP status,
error code and the names of their classes, so that no library needs to be imported.
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

from convoy.core.errors import ConvoyError, DataError, UsageError
from convoy.core.text import one_line

# Extra of Convoy's distribution with the library for a scheme.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}

_CREDENTIALS = {
    "s3": "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role",
    "gcs": "Run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS to a key file, or give the "
    "machine a service account",
    "azure": "Set AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or "
    "AZURE_STORAGE_CONNECTION_STRING, or use `az login` or a managed identity",
}
_ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gcs": "STORAGE_EMULATOR_HOST"}

_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "DefaultCredentialsError",
    "CredentialUnavailableError",
    "ClientAuthenticationError",
}
_NO_BUCKET = {"NoSuchBucket", "InvalidBucketName", "ContainerNotFound"}
_OTHER_REGION = {
    "PermanentRedirect",
    "301",
    "307",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "TemporaryRedirect",
}
_UNREACHABLE = {"EndpointConnectionError", "ClientConnectorError", "ConnectionRefusedError", "ServiceRequestError"}
_TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_TRANSIENT = {
    "ChecksumError",
    "ChunkedEncodingError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionError",
    "FSTimeoutError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "ProxyError",
    "ResponseParserError",
    "ServiceResponseError",
    "TimeoutError",
    "TransportError",
    "TruncatedError",
}


class TruncatedError(Exception):
    """An answer has fewer bytes than were asked for."""


@dataclass(frozen=True)
class Failure:
    """What an error of a store means.

    Attributes:
      is_transient: whether the same request may succeed later.
      is_missing: whether there is no such object, although the store can be read.
      kind: the class of the error for the user.
      reason: what is wrong, with the words of the server.
      fix: what to do about it, as a sentence.
    """

    is_transient: bool
    is_missing: bool
    kind: type[ConvoyError]
    reason: str
    fix: str

    def error(self, url: str) -> Exception:
        """Returns the exception to raise for a URL."""
        if self.is_missing:
            return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
        return self.kind(f"{url}: {self.reason}. {self.fix}")


def scheme_of(url: str) -> str:
    """Returns the part before `://`."""
    return url.partition("://")[0].lower()


def judged(error: BaseException, url: str) -> Failure:
    """Returns what an error that a store's library raised for a URL means."""
    chain = list(_chain(error))
    names = {kind.__name__ for each in chain for kind in type(each).__mro__}
    codes = {code for each in chain if (code := _code(each))}
    statuses = {status for each in chain if (status := _status(each))}
    store = EXTRAS.get(scheme_of(url), "")
    said = one_line(next((text for each in chain if (text := str(each).strip())), type(error).__name__)).rstrip(".")
    endpoint = os.environ.get(_ENDPOINTS.get(store, ""), "")
    at = f" at {endpoint}" if endpoint else ""

    def permanent(kind: type[ConvoyError], reason: str, fix: str) -> Failure:
        return Failure(False, False, kind, f"{reason} ({said})", f"{fix}.")

    if names & _NO_CREDENTIALS or (store == "azure" and "ValueError" in names):
        fix = _CREDENTIALS.get(store, "Provide them as its library expects")
        return permanent(UsageError, "no credentials for the store can be used", fix)
    if codes & _NO_BUCKET:
        bucket = url.partition("://")[2].partition("/")[0]
        fix = "Create it, or correct the name, the account or the endpoint"
        return permanent(DataError, f"the bucket {bucket!r} does not exist{at}", fix)
    if codes & _OTHER_REGION:
        return permanent(UsageError, "the bucket is in another region", "Set AWS_DEFAULT_REGION to its region")
    if names & _UNREACHABLE and not statuses:
        variable = _ENDPOINTS.get(store, "")
        also = f", and that {variable}={endpoint} is right" if endpoint else ""
        reason = f"the store cannot be reached{at} ({said})"
        return Failure(True, False, ConvoyError, reason, f"Check the network{also}.")
    if statuses & _TRANSIENT_STATUSES or names & _TRANSIENT:
        number = f"{min(statuses)}: " if statuses else ""
        fix = "The store or the network may be overloaded: run the command again later."
        return Failure(True, False, ConvoyError, f"the store does not answer as it should ({number}{said})", fix)
    if "FileNotFoundError" in names or 404 in statuses:
        return Failure(False, True, DataError, said, "")
    if "PermissionError" in names or statuses & {401, 403} or said.startswith("Forbidden"):
        fix = f"Check the policy of the bucket and the credentials. {_CREDENTIALS.get(store, '')}".rstrip(". ")
        return permanent(UsageError, "access is denied", fix)
    return permanent(ConvoyError, "the store refuses the request", "Correct the path or the settings of the store")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__  # its context may be a failure that the library has dealt with


def _response(error: BaseException) -> dict:
    response = getattr(error, "response", None)  # of botocore
    return response if isinstance(response, dict) else {}


def _code(error: BaseException) -> str:
    azure = getattr(error, "error_code", None)
    return str(_response(error).get("Error", {}).get("Code") or azure or "")


def _status(error: BaseException) -> int:
    found = [_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")]
    found += (getattr(error, name, None) for name in ("status", "status_code", "code"))  # of aiohttp, Azure, gcsfs
    return next((int(value) for value in found if str(value).isdecimal()), 0)
