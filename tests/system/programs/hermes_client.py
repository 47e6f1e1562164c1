"""What Hermes asks of a server before it chats, by its own functions. Arguments: the gateway's URL, two models."""

import json
import sys

from agent.model_metadata import detect_local_server_type, get_model_context_length
from hermes_cli.model_switch import switch_model
from hermes_cli.models import ensure_lmstudio_model_loaded, probe_api_models, validate_requested_model

url, one, other = sys.argv[1:]
base = f"{url}/v1"
switched = switch_model(other, "custom", one, current_base_url=base)
print(
    json.dumps(
        {
            "kind": detect_local_server_type(base),
            "models": probe_api_models("", base)["models"],
            "models at the root": probe_api_models("", url)["models"],
            "context": [get_model_context_length(each, base_url=base, provider="custom") for each in (one, other)],
            "known": validate_requested_model(one, "custom", base_url=base)["recognized"],
            "unknown": validate_requested_model("no-such-model", "custom", base_url=base)["recognized"],
            "known to LM Studio's": validate_requested_model(one, "lmstudio", base_url=base)["accepted"],
            "unknown to LM Studio's": validate_requested_model("no-such-model", "lmstudio", base_url=base)["accepted"],
            "loaded": ensure_lmstudio_model_loaded(other, base, "", 64000),
            "switched": [switched.success, switched.new_model],
        }
    )
)
