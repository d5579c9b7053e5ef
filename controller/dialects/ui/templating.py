"""Templates to pages. Everything that is put into one is escaped, whoever has written it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jinja2
from aiohttp import web

from controller.core.model import Level
from controller.dialects.ui import static, words

_FOLDER: Final = Path(__file__).parent / "templates"


def _environment() -> jinja2.Environment:
    # Read here, when the program starts: no page waits for a disk.
    sources = {path.name: path.read_text() for path in sorted(_FOLDER.glob("*.html"))}
    made = jinja2.Environment(
        loader=jinja2.DictLoader(sources),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "ago": words.ago,
        "bytes": words.size,
        "count": words.count,
        "duration": words.duration,
        "iso": words.iso,
        "plain": words.plain,
        "quantity": words.quantity,
        "when": words.when,
    }
    made.globals |= {
        "static": static.url,
        "code_words": words.CODES,
        "state_words": words.STATES,
        "levels": tuple(Level),
    }
    shared = made.get_template("icons.html").make_module()
    made.globals |= {name: getattr(shared, name) for name in ("icon", "badge", "moment", "tally")}
    return made


ENVIRONMENT: Final = _environment()


def page(template: str, values: Mapping[str, Any], *, status: int = 200) -> web.Response:
    """The template, filled, as an answer."""
    text = ENVIRONMENT.get_template(template).render(values)
    return web.Response(status=status, text=text, content_type="text/html", charset="utf-8")
