"""What other programs write into the journal, as they wrote it."""

from healer.host.journal import stack_of

# Of systemd-coredump 257 with libdw.
MESSAGE = """\
Process 292 (worker) of user 62867 dumped core.

Module libc.so.6 from deb glibc-2.41-12.amd64
Stack trace of thread 292:
#0  0x00007f5b1e89e95c n/a (libc.so.6 + 0x9495c)
#1  0x00007f5b1e849cc2 raise (libc.so.6 + 0x3fcc2)
#2  0x00005566d2c0113e run (worker + 0x113e)

Stack trace of thread 293:
#0  0x00007f5b1e8d0e12 n/a (libc.so.6 + 0xc6e12)
ELF object binary architecture: AMD x86-64
"""


def test_the_stack_is_that_of_the_thread_that_died() -> None:
    assert stack_of(MESSAGE) == (
        "#0  0x00007f5b1e89e95c n/a (libc.so.6 + 0x9495c)",
        "#1  0x00007f5b1e849cc2 raise (libc.so.6 + 0x3fcc2)",
        "#2  0x00005566d2c0113e run (worker + 0x113e)",
    )


def test_there_may_be_no_stack() -> None:
    assert stack_of("Process 292 (worker) of user 62867 dumped core.") == ()


def test_a_deep_stack_is_cut() -> None:
    frames = "".join(f"#{n}  0x00 recurse (worker + 0x1)\n" for n in range(1000))
    assert len(stack_of(f"Stack trace of thread 1:\n{frames}")) == 32
