"""The sandbox's filter of system calls, which the kernel runs before each call; the rules are in `syscalls`.

libseccomp (through the package `pyseccomp`) makes the program; the supervisor hands it to bubblewrap, and no process of
the job can take it off.
"""

import errno
import functools
import tempfile
from typing import Final

from agent.executors.base import Unusable
from agent.executors.syscalls import rules

SETTING: Final = "RAP_SANDBOX_SECCOMP"
AUTO: Final = "auto"
"""A filter where libseccomp is there, a warning where it is not."""
REQUIRED: Final = "required"
"""No filter, no job."""
OFF: Final = "off"
CHOICES: Final = (AUTO, REQUIRED, OFF)


@functools.cache
def program() -> bytes:
    """The filter for this machine's processor, as the kernel takes it (blocking).

    :raises Unusable: libseccomp is not there, or cannot make it.
    """
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError) as error:
        raise Unusable(f"libseccomp is not there ({error}): install the package `libseccomp2`") from error
    try:
        made = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
        # Calls by another ABI of the processor (32-bit, x32) would pass by every rule.
        made.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.ERRNO(errno.ENOSYS))
        for rule in rules():
            tests = [
                pyseccomp.Arg(test.argument, pyseccomp.NE, test.value)
                if test.negated
                else pyseccomp.Arg(test.argument, pyseccomp.MASKED_EQ, test.mask, test.value)
                for test in rule.tests
            ]
            # Calls that this processor does not have are left out by libseccomp itself.
            made.add_rule(pyseccomp.ERRNO(rule.error), rule.call, *tests)
        with tempfile.TemporaryFile() as file:
            made.export_bpf(file)
            file.seek(0)
            return file.read()
    except OSError as error:
        raise Unusable(f"libseccomp cannot make a filter of system calls: {error}") from error
