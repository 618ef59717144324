"""A tier's ONNX file behind LitServe or Ray Serve, as `bench_server.py` starts it in an environment of their own.

Both batch dynamically, in one worker, and give the engine the threads and settings that dimec's server gives it. A
request is {"input_ids": [...]}, an answer {"logits": [...]}, as their users would write it.

    python benchmarks/other_servers.py litserve|ray TIER.onnx PORT MAX_BATCH
"""

# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202, ANN204
# Neither library is installed where the checks run.

import sys
import time

import numpy as np
import onnxruntime as ort

WAIT_S = 0.002


def opened(path):
    options = ort.SessionOptions()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def answer(session, rows):
    longest = max(map(len, rows))
    ids = np.zeros((len(rows), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = 1
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    names = [each.name for each in session.get_inputs()]
    (logits,) = session.run(None, {name: given[name] for name in names})
    return logits.tolist()


if sys.argv[1:2] == ["litserve"]:
    import litserve

    class Tier(litserve.LitAPI):  # its worker is spawned, so this has to be found by name
        def setup(self, device):
            self.session = opened(sys.argv[2])

        def decode_request(self, request):
            return request["input_ids"]

        def batch(self, inputs):
            return inputs

        def unbatch(self, output):
            return output

        def predict(self, rows):
            return answer(self.session, rows)

        def encode_response(self, output):
            return {"logits": output}


def lit_serve(path, port, max_batch):
    api = Tier(max_batch_size=max_batch, batch_timeout=WAIT_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


def ray_serve(path, port, max_batch):
    import ray
    from ray import serve

    @serve.deployment(num_replicas=1, max_ongoing_requests=256)
    class Tier:
        def __init__(self):
            self.session = opened(path)

        @serve.batch(max_batch_size=max_batch, batch_wait_timeout_s=WAIT_S)
        async def run(self, rows):
            return answer(self.session, rows)

        async def __call__(self, request):
            return {"logits": await self.run((await request.json())["input_ids"])}

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port, "access_log": False})
    serve.run(Tier.bind(), route_prefix="/predict")
    while True:
        time.sleep(60)


if __name__ == "__main__":
    kind, path, port, max_batch = sys.argv[1:]
    {"litserve": lit_serve, "ray": ray_serve}[kind](path, int(port), int(max_batch))
