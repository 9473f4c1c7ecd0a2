"""A process that parses and splits documents for another one, within limits.

`main`, in a process of its own, talks over a socket that it inherits, in frames of bytes: first the tokenizer's
definition and the bytes of memory that it may take; then a document's header and its data, answered by a header and the
tokens of all its passages. JSON and numbers only: what comes back from a process that has read a hostile document is
data and never an object.
"""

import json
import logging
import math
import os
import resource
import sys
import time
from array import array
from multiprocessing.connection import Connection
from pathlib import Path

from tokenizers import Tokenizer

from kvblend.core.errors import InvalidRequestError, UnsupportedDocumentError
from kvblend.retriever.splitter import split_document
from kvblend.retriever.tokenizer import PassageTokenizer

__all__ = ["OUT_OF_MEMORY", "TOKEN_TYPE", "main"]

TOKEN_TYPE = "i"
OUT_OF_MEMORY = 77
"""The status of a process that has run out of what it may take."""
NO_MEMORY = (MemoryError, SystemError)
"""The second is the interpreter's, where an allocation failed in its own code and nobody said so."""
NICENESS = 10
"""Behind whoever answers a query on the same cores."""
STATM = Path("/proc/self/statm")


def serve(connection: Connection) -> None:
    """Answer until the other end closes."""
    tokenizer = PassageTokenizer(Tokenizer.from_str(connection.recv_bytes().decode()))
    _limit_memory(int(connection.recv_bytes()))
    while True:
        try:
            order = json.loads(connection.recv_bytes())
            data = connection.recv_bytes()
        except EOFError:
            return
        _limit_time(order["seconds"])
        header, token_ids = _answer(order, data, tokenizer)
        connection.send_bytes(json.dumps(header).encode())
        connection.send_bytes(token_ids)


def _answer(order: dict[str, object], data: bytes, tokenizer: PassageTokenizer) -> tuple[dict[str, object], bytes]:
    try:
        passages = split_document(
            data, str(order["media_type"]), str(order["name"]), int(str(order["passage_tokens"])), tokenizer=tokenizer
        )
        token_ids = array(TOKEN_TYPE)
        for passage in passages:
            token_ids.extend(passage.token_ids)
        texts, counts = [each.text for each in passages], [len(each.token_ids) for each in passages]
        return {"texts": texts, "counts": counts}, token_ids.tobytes()
    except UnsupportedDocumentError as error:
        return {"unsupported": error.message, "param": error.param}, b""
    except InvalidRequestError as error:
        return {"invalid": error.message, "param": error.param}, b""
    except NO_MEMORY:
        return {"memory": True}, b""
    except Exception:  # this process's edge: the other one goes on without this document
        logging.getLogger(__name__).exception("a document could not be split")
        return {"failed": True}, b""


def _limit_memory(num_bytes: int) -> None:
    """Beside what the process has taken by now; only Linux tells that."""
    if STATM.exists():
        taken = int(STATM.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + num_bytes, taken + num_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time(seconds: float) -> None:
    """Of CPU, from now on; beyond it the system ends the process."""
    soft = math.ceil(time.process_time() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def main() -> None:
    """Serve the socket whose file descriptor is the first argument."""
    logging.basicConfig(level=logging.ERROR)
    os.nice(NICENESS)
    try:
        serve(Connection(int(sys.argv[1])))
    except NO_MEMORY:  # it may come anywhere, in the answer to one that came before, too
        os._exit(OUT_OF_MEMORY)
