"""Stylesheet and scripts: read once, served from memory under names that change with their content.

The vendored scripts are as their authors published them; versions and licences are beside them. Nothing is loaded from
another host.
"""

import hashlib
from pathlib import Path
from typing import Final

from aiohttp import web
from attrs import frozen

_FOLDER: Final = Path(__file__).parent / "static"
_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@frozen(kw_only=True)
class Asset:
    """One file."""

    content: bytes
    media_type: str
    digest: str


def _load() -> dict[str, Asset]:
    return {
        path.name: Asset(
            content=content, media_type=_TYPES[path.suffix], digest=hashlib.sha256(content).hexdigest()[:16]
        )
        for path in sorted(_FOLDER.rglob("*"))
        if path.suffix in _TYPES
        for content in (path.read_bytes(),)
    }


ASSETS: Final = _load()
"""By file name."""


def add_to(app: web.Application) -> None:
    """Serve them."""
    app.router.add_get("/static/{digest}/{name}", serve)


def url(name: str) -> str:
    """Where the file of this name is.

    :raises KeyError: there is none.
    """
    return f"/ui/static/{ASSETS[name].digest}/{name}"


async def serve(request: web.Request) -> web.Response:
    """A file; under any other digest than its own there is none, so that caches may keep it for ever."""
    asset = ASSETS.get(request.match_info["name"])
    if asset is None or asset.digest != request.match_info["digest"]:
        raise web.HTTPNotFound
    return web.Response(
        body=asset.content,
        content_type=asset.media_type,
        charset="utf-8",
        headers={"Cache-Control": "public, max-age=31536000, immutable"},
    )
