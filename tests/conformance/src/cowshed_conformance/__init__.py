"""The conformance suite of Cowshed's storage drivers: `pytest --pyargs cowshed_conformance --driver NAME`."""
