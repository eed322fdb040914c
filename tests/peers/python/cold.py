"""Reads a checkpoint's shards to the last byte, once, with a loader of the field.

usage: cold.py LOADER SHARD...
       cold.py runai-s3 s3://BUCKET/KEY...
       cold.py boto3 BUCKET KEY...

What is imported and prepared before is not in the figures.
"""

import os
import sys
import time

import load


def measured(read) -> None:
    client = load.trees_seconds([os.getpid()])
    servers = [int(pid) for pid in os.environ.get("PEERS_SERVERS", "").split()]
    server = load.trees_seconds(servers)
    began = time.monotonic()
    size = read()
    seconds = time.monotonic() - began
    client = load.trees_seconds([os.getpid()]) - client
    server = load.trees_seconds(servers) - server
    load.report(
        [
            {
                "bytes": size,
                "seconds": seconds,
                "client": client,
                "server": server,
                "latencies": [seconds],
            }
        ]
    )


def safetensors_mmap(shards: list[str]):
    """Every tensor as PyTorch has it, each page touched: mapped, and copied as a
    loader does that wants it in memory of its own."""
    import safetensors
    import torch

    def read() -> int:
        size = 0
        for shard in shards:
            with safetensors.safe_open(shard, framework="pt") as opened:
                for name in opened.keys():
                    tensor = opened.get_tensor(name)
                    size += tensor.nbytes
                    torch.clone(tensor)
        return size

    return read


def runai(paths: list[str]):
    from runai_model_streamer import SafetensorsStreamer

    def read() -> int:
        size = 0
        with SafetensorsStreamer() as streamer:
            streamer.stream_files(paths)
            for _name, tensor in streamer.get_tensors():
                size += tensor.nbytes
        return size

    return read


def fastsafetensors(shards: list[str]):
    from fastsafetensors import SafeTensorsFileLoader

    def prepared():
        return SafeTensorsFileLoader(None, "cpu", nogds=True, set_numa=False)

    # The first one imports PyTorch.
    prepared().close()

    def read() -> int:
        loader = prepared()
        loader.add_filenames({0: shards})
        size = 0
        buffers = loader.copy_files_to_device()
        for name in buffers.key_to_rank_lidx:
            size += buffers.get_tensor(name).nbytes
        buffers.close()
        loader.close()
        return size

    return read


def boto3(arguments: list[str]):
    """`download_fileobj`, which reads 8 MiB parts, 10 at a time, into memory."""
    import io

    import boto3 as sdk

    bucket, *keys = arguments
    client = sdk.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])

    def read() -> int:
        size = 0
        for key in keys:
            into = io.BytesIO()
            client.download_fileobj(bucket, key, into)
            size += into.tell()
        return size

    return read


LOADERS = {
    "safetensors": safetensors_mmap,
    "runai": runai,
    "runai-s3": runai,
    "fastsafetensors": fastsafetensors,
    "boto3": boto3,
}

if __name__ == "__main__":
    measured(LOADERS[sys.argv[1]](sys.argv[2:]))
