"""Downloads that end as a whole, checked file or as nothing at all."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from medbench.api import DataError, Unavailable
from medbench_datasets._store import replacing

_TIMEOUT_S = 60
_BLOCK = 1 << 20


def download(url: str, path: Path, *, md5: str | None = None) -> Path:
    """Fetch `url` into `path`, which appears only when it is complete and has this MD5.

    Raises `Unavailable` when the address cannot be reached or the connection is cut, and
    `DataError` when what came is not what was expected.
    """
    if not url.startswith(("https://", "http://")):
        raise DataError(f"{url} is not a web address: expected one that begins with https://.")
    request = urllib.request.Request(url, headers={"User-Agent": "medbench"})  # noqa: S310
    with replacing(path) as file:
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
                length = answer.headers.get("Content-Length")
                digest = hashlib.md5(usedforsecurity=False)
                n_bytes = 0
                while block := answer.read(_BLOCK):
                    file.write(block)
                    digest.update(block)
                    n_bytes += len(block)
        except urllib.error.HTTPError as error:
            error.close()
            raise Unavailable(
                f"{url} answered {error.code} {error.reason}; expected the file. Try again later, "
                f"or download it by hand to {path}."
            ) from error
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise Unavailable(
                f"The download of {url} broke off ({type(error).__name__}: {error}); nothing was "
                "kept. Run the command again."
            ) from error
        except urllib.error.URLError as error:
            raise Unavailable(
                f"{url} cannot be reached: {error.reason}. Check the network, or download it by "
                f"hand to {path}."
            ) from error
        # http.client raises for a short body only when read without a block size.
        if length is not None and n_bytes != int(length):
            raise Unavailable(
                f"The download of {url} broke off after {n_bytes} of {length} bytes; nothing was "
                "kept. Run the command again."
            )
        if md5 is not None and digest.hexdigest() != md5:
            raise DataError(
                f"What {url} sent has MD5 {digest.hexdigest()} ({n_bytes} bytes); expected {md5}. "
                "Nothing was kept. Try again, or check the mirror if you set one."
            )
    return path
