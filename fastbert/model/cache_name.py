"""The cache of keys and values, by the name that the installed transformers gives it.

`past_key_values` until transformers 5.23; from 5.24 on the argument and the output are called `cache`, and the old name is
deprecated. fastbert's forwards are written with the old one.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from transformers.models.bert import modeling_bert as hf

OLD, NEW = "past_key_values", "cache"
CACHE = NEW if NEW in inspect.signature(hf.BertModel.forward).parameters else OLD


def with_cache_name(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Gives the argument `past_key_values` of a forward the name it has in transformers, and its deprecation, if any."""
    if CACHE == OLD:
        return forward
    from transformers.utils.deprecation import deprecate_kwarg

    @functools.wraps(forward)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        if NEW in kwargs:
            kwargs[OLD] = kwargs.pop(NEW)
        return forward(*args, **kwargs)

    signature = inspect.signature(forward)
    parameters = [parameter.replace(name=NEW) if name == OLD else parameter for name, parameter in signature.parameters.items()]
    renamed.__dict__["__signature__"] = signature.replace(parameters=parameters)
    return deprecate_kwarg(OLD, version="5.40.0", new_name=NEW)(renamed)
