# SPDX-License-Identifier: Apache-2.0
"""
Differential runs
-----------------

The same *scenario* on the soft backend and on the real KVM that its profile models: this host's, or
the upstream one of the nested machine. Everything that guest and user space could see is compared.

``scenario`` is the value, ``generate`` makes them up, ``guest`` is the code that they run,
``machine`` plays them, ``compare`` says what differs, ``places`` is where. ``ioctl_errors`` tries
each ioctl with bad arguments. In the nested machine ``inside`` and what it needs run with Python's
standard library alone.

    python -m tests.differential --help
"""
