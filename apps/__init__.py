"""Programs on Hoststack's public API."""
