"""For all tests of the workspace."""

import signal

# Whoever is started in the background by a shell script has it ignored, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
