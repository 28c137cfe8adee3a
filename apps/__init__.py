"""Programs on the public API of hoststack."""
