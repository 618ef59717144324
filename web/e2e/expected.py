"""What Python's device says of texts, one at a time: JSON lines of what a browser's has to say too.

python expected.py BUNDLE EDGE CLOUD < texts.json
"""

import json
import sys
import tempfile
from pathlib import Path

from dimec.runtime.device.device import Device

bundle, edge, cloud = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    alone = Path(folder)  # the mobile tier alone, as a phone has it
    (alone / "mobile").symlink_to(Path(bundle).resolve() / "mobile")
    with Device(alone, edge=edge, cloud=cloud) as device:
        for text in json.load(sys.stdin):
            ids = device.tokenizer.encode_one(text, None)[0].input_ids[0].tolist()
            [answer] = device.stream(iter([text]), in_flight=1)
            told = {name: getattr(answer, name) for name in ("label", "layer", "cost", "degraded")}
            told |= {"tier": str(answer.tier), "probabilities": answer.probabilities, "ids": ids}
            sys.stdout.write(f"{json.dumps(told)}\n")
