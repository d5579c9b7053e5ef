"""Two habits of the upstream server that its clients may lean on: missing slashes, and writing to pages."""

from collections.abc import Iterable, Iterator
from typing import Final

from aiohttp import web

from controller.web.errors import empty

WRITING: Final = ("POST", "PUT", "PATCH", "DELETE")


def add_slashes(routes: Iterable[web.RouteDef]) -> Iterator[web.RouteDef]:
    """For each of `routes` that ends in a slash, one without it that answers 301, whatever the method."""
    for route in routes:
        if route.path.endswith("/"):
            yield web.route("*", route.path.removesuffix("/"), _to_slash)


def forbid_writes(routes: Iterable[web.RouteDef]) -> Iterator[web.RouteDef]:
    """For each of `routes`, that every method that would change something answers 403, token or not."""
    for route in routes:
        for method in WRITING:
            yield web.route(method, route.path, _forbidden)


async def _to_slash(request: web.Request) -> web.Response:
    url = request.rel_url  # as it was sent: what was percent-encoded stays so, and cannot become another host
    query = f"?{url.raw_query_string}" if url.raw_query_string else ""
    return empty(301, {"Location": f"{url.raw_path}/{query}"})


async def _forbidden(_: web.Request) -> web.Response:
    raise web.HTTPForbidden
