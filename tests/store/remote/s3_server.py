"""moto's S3 server, by which a conditional put is one step, as S3's is: moto looks at what there is, and then puts."""

import sys
from collections.abc import Iterable
from contextlib import nullcontext
from threading import Lock
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple


class OnePutAtATime:
    """The application, with one put let in at a time."""

    def __init__(self, application: WSGIApplication) -> None:
        self._application, self._putting = application, Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with self._putting if environ["REQUEST_METHOD"] == "PUT" else nullcontext():
            return self._application(environ, start_response)


if __name__ == "__main__":
    application = OnePutAtATime(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True, request_handler=MotoRequestHandler)
