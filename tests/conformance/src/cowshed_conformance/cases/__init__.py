"""The cases. Each is named by its number: docs/reference/conformance.md."""
