"""The one exception of the emulator."""


class Fault(RuntimeError):
    """A kernel did what a GPU punishes, forbids or leaves undefined.

    The message says what happened, then the kernel, the line of its PTX, the line of its Python source, the block and the
    thread.
    """
