"""A gRPC client that shares nothing with tpad but the proto files.

Fetches every expert of a model and compares each tensor with what the
`safetensors` library reads from the original checkpoint. Prints how many blocks
and tensors were equal; any difference ends it with an error.

usage: fetch_experts.py PROTO_DIRECTORY ADDRESS MODEL CHECKPOINT
"""

import importlib.resources
import pathlib
import sys
import tempfile

import grpc
import safetensors
from grpc_tools import protoc


def generate(proto: pathlib.Path, out: str) -> None:
    """Makes Python modules of the proto files and puts them on the path."""
    sources = [str(path) for path in sorted(proto.glob("tpad/v1/*.proto"))]
    known_types = importlib.resources.files("grpc_tools") / "_proto"
    arguments = ["protoc", f"-I{proto}", f"-I{known_types}"]
    arguments += [f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(arguments + sources) != 0:
        sys.exit("protoc failed")
    sys.path.insert(0, out)


def read_checkpoint(directory: pathlib.Path) -> dict[str, tuple[str, list[int], bytes]]:
    tensors = {}
    for shard in sorted(directory.glob("*.safetensors")):
        for name, tensor in safetensors.deserialize(shard.read_bytes()):
            tensors[name] = (tensor["dtype"], tensor["shape"], bytes(tensor["data"]))
    return tensors


def slice_of(tensor: tuple[str, list[int], bytes], row: int) -> tuple[str, list[int], bytes]:
    dtype, shape, data = tensor
    size = len(data) // shape[0]
    return dtype, shape[1:], data[row * size : (row + 1) * size]


def blocks(stream):
    """Puts blocks together: each is opened once, then its image follows."""
    opened, image = None, bytearray()
    for response in stream:
        kind = response.part.WhichOneof("part")
        if kind == "block":
            if opened is not None:
                yield opened, bytes(image)
            opened, image = response.part.block, bytearray()
        elif kind == "payload":
            image += response.part.payload
    if opened is not None:
        yield opened, bytes(image)


def main(proto: str, address: str, model: str, checkpoint: str) -> None:
    originals = read_checkpoint(pathlib.Path(checkpoint))
    with tempfile.TemporaryDirectory() as generated:
        generate(pathlib.Path(proto), generated)
        from tpad.v1 import expert_pb2, expert_pb2_grpc, model_pb2, model_pb2_grpc

        # Otherwise the socket's path would be the authority, which is none.
        unix = [("grpc.default_authority", "localhost")] if address.startswith("unix:") else []
        with grpc.insecure_channel(address, unix) as channel:
            models = model_pb2_grpc.ModelServiceStub(channel)
            described = models.DescribeModel(
                model_pb2.DescribeModelRequest(model=model), timeout=60
            )
            tiers = [tier.id for tier in described.tiers]
            experts = expert_pb2_grpc.ExpertServiceStub(channel)
            request = expert_pb2.FetchExpertsRequest(model=model, tiers=tiers)
            compared = set()
            tensors = 0
            for block, image in blocks(experts.FetchExperts(request, timeout=60)):
                assert len(image) == block.image_bytes, block.key
                for tensor in block.tensors:
                    expected = originals[tensor.name]
                    if tensor.sliced:
                        expected = slice_of(expected, block.source_expert)
                    else:
                        assert f".{block.source_expert}." in tensor.name, tensor.name
                    found = image[tensor.offset : tensor.offset + tensor.bytes]
                    if (tensor.dtype, list(tensor.shape), found) != expected:
                        sys.exit(f"{tensor.name} differs in {block.key}")
                    tensors += 1
                compared.add((block.key.expert.layer, block.source_expert))
    print(f"blocks {len(compared)} tensors {tensors}")


if __name__ == "__main__":
    main(*sys.argv[1:])
