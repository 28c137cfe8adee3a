"""Programs that use hoststack's public API."""
