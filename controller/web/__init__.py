"""What the dialects share of HTTP: keys, tokens, bounded bodies, errors, the middleware around everything."""
