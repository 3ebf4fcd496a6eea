"""What Python imports before a program under `fastbert run`, and in the Python processes that the program starts.

`fastbert run` puts this folder first into PYTHONPATH. After the registration everything is as it would be without it: the
folder is off sys.path, and the user's own sitecustomize has its turn. Any Python may meet this file, so it is plain.
"""

import os
import sys


def _serve():
    announcement = os.environ.pop("FASTBERT_RUN_ANNOUNCEMENT", None)  # for the first process alone
    if sys.hexversion < 0x030A0000:  # a Python that fastbert does not run on
        return
    try:
        import fastbert  # noqa: F401  (registers, as FASTBERT_REGISTER says)
    except ModuleNotFoundError as error:
        if announcement is not None or error.name != "fastbert":
            raise
        return  # another Python, which has no fastbert
    if announcement is not None:
        sys.stderr.write(announcement + "\n")
        sys.stderr.flush()


def _hand_over():
    """To the sitecustomize that Python would have imported without this one, if there is any."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


_here = os.path.dirname(os.path.realpath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != _here]
try:
    _serve()
finally:
    _hand_over()
