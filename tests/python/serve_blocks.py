"""A gRPC server that shares nothing with tpad but the proto files.

Answers every FetchExperts of model "m" with three blocks of tier "t", in messages as
grpcio writes them, and ends with the status UNAVAILABLE if the model is "broken".
Prints the port that it listens on, and serves until its standard input ends.

usage: serve_blocks.py PROTO_DIRECTORY
"""

import concurrent.futures
import pathlib
import sys
import tempfile

import fetch_experts
import grpc

SIZES = [256, 1 << 20, (5 << 20) + 512]
PIECES = [1000, 1 << 20, 3 << 20]


def image(expert: int) -> bytes:
    size = SIZES[expert]
    pattern = bytes((at * 7 + expert) % 256 for at in range(256))
    return (pattern * (size // 256 + 1))[:size]


def answer(request, context, block_pb2, expert_pb2, digests):
    def part(**fields):
        return expert_pb2.FetchExpertsResponse(part=block_pb2.BlockPart(**fields))

    start = block_pb2.StreamStart(model=request.model, revision=1, generation=1)
    start.blocks, start.bytes = len(SIZES), sum(SIZES)
    yield part(start=start)
    for expert, size in enumerate(SIZES):
        if expert == 2 and request.model == "broken":
            context.abort(grpc.StatusCode.UNAVAILABLE, "as the test wants it")
        key = block_pb2.ExpertKey(tier="t", group=0, expert=expert)
        tensor = block_pb2.Tensor(name="w", dtype="U8", shape=[size], bytes=size)
        tensor.projection, tensor.part = block_pb2.PROJECTION_UP, block_pb2.PART_WEIGHT
        tensor.values_per_element = 1
        at = block_pb2.ExpertAtLayer(key=key, layer=0)
        block = block_pb2.Block(key=block_pb2.BlockKey(expert=at), tensors=[tensor])
        block.block_id, block.image_bytes = digests[expert], size
        yield part(block=block)
        data, piece = image(expert), PIECES[expert]
        for begin in range(0, size, piece):
            yield part(payload=data[begin : begin + piece])


def main() -> None:
    with tempfile.TemporaryDirectory() as out:
        fetch_experts.generate(pathlib.Path(sys.argv[1]), out)
        from tpad.v1 import block_pb2, expert_pb2, expert_pb2_grpc

        # The test says the digests: Python's library has no BLAKE3.
        digests = [bytes.fromhex(sys.stdin.readline().strip()) for _ in SIZES]

        class Experts(expert_pb2_grpc.ExpertServiceServicer):
            def FetchExperts(self, request, context):
                return answer(request, context, block_pb2, expert_pb2, digests)

        pool = concurrent.futures.ThreadPoolExecutor(max_workers=8)
        server = grpc.server(pool)
        expert_pb2_grpc.add_ExpertServiceServicer_to_server(Experts(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        print(port, flush=True)
        sys.stdin.read()
        server.stop(None)


if __name__ == "__main__":
    main()
