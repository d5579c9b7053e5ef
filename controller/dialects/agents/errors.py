"""Errors for agents: `{"error": key, "message": sentence, ...fields}`, and a status that says what to do.

400, 409, 413: this body never can be accepted. 401: the token is wrong for this backend, or there is no such
backend; the two look the same. 404: not this agent's. 503: later, after `Retry-After` seconds.
"""

from typing import Final

from controller.web import json_errors
from controller.web.errors import BodyTooLarge
from controller.web.json_errors import answer_http, body

ANSWERS: Final = {**json_errors.ANSWERS, BodyTooLarge: json_errors.as_status(413)}

__all__ = ["ANSWERS", "answer_http", "body"]
