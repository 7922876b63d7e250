"""A guest with a Debian kernel under QEMU, in which this project's tests run as root. Needs nothing but Python's own
library and Debian packages, so that it can be built before `make setup` has run."""
