"""Errors of the native API: `{"error": key, "message": sentence, ...fields}`."""

from controller.web.json_errors import ANSWERS, answer_http, body

__all__ = ["ANSWERS", "answer_http", "body"]
