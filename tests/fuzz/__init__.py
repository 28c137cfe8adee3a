"""libFuzzer targets for the C core: see docs/testing.md."""
