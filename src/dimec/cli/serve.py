"""``dimec serve``: one tier of a bundle as a server, or the whole cascade for callers that have texts."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from dimec.cli.console import say_json
from dimec.core.options import checked
from dimec.core.outputs import check_output_file
from dimec.runtime.server.settings import ServeOptions


def serve(given: dict[str, Any]) -> None:
    """Serve a tier over HTTP in the Open Inference Protocol v2, or a text classifier of all tiers, until SIGTERM.

    Once it is ready, a JSON line on stdout says where: `url`, `port`, `tier`, `model_fingerprint`, `pid`.
    Logs are JSON lines on stderr.

    **Example**: `dimec serve edge bundles/sst2 --port 8101`

    **For callers that have texts**:
    `dimec serve device bundles/sst2 --edge http://edge:8101 --cloud https://cloud`

    **With the page that is the mobile tier**: `dimec serve edge bundles/sst2 --site site --port 8101`

    **A language model as the cloud**, its key in OPENAI_API_KEY:
    `dimec serve cloud bundles/tickets --model chat:https://api.openai.com/v1#gpt-4o-mini`

    **For other machines**: `dimec serve edge B --host 0.0.0.0 --token-file t --tls-certificate c.pem --tls-key k.pem`
    """
    # The server's libraries are loaded only here: other commands start without them.
    from dimec.bundle.manifest import BUNDLE_FILES
    from dimec.runtime.server.server import Ready
    from dimec.runtime.server.server import serve as run

    def announce(ready: Ready) -> None:
        say_json(json.dumps({"event": "ready", **asdict(ready)}))

    chosen = checked(ServeOptions, given)
    if chosen.ready_file is not None:
        reads = {
            "--token-file": chosen.token_file,
            "--model-key-file": chosen.model_key_file,
            "--tiers-token-file": chosen.tiers_token_file,
            "--ca-file": chosen.ca_file,
            "--certificate-file": chosen.certificate_file,
            "--key-file": chosen.key_file,
            "--state": chosen.state,
            "--site": chosen.site,
            "--tls-certificate": chosen.tls_certificate,
            "--tls-key": chosen.tls_key,
            "--tls-client-ca": chosen.tls_client_ca,
            **{str(path): path for each in BUNDLE_FILES for path in chosen.bundle.glob(each)},
        }
        check_output_file(chosen.ready_file, option="--ready-file", inputs=reads)
    run(chosen, announce=announce)
