"""The engine: use cases over core, store and sources. Dialects import `Engine` from `controller.engine.facade`."""
