"""What grpcio needs to be told for large values: large frames and windows, no probing
of the link, which on loopback finds too little, and no thread between a call and who
reads it. `load.keep_memory` belongs to it."""

RECOMMENDED = [
    ("grpc.http2.max_frame_size", 1 << 20),
    ("grpc.http2.lookahead_bytes", 16 << 20),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("SingleThreadedUnaryStream", 1),
    # A connection for each channel; channels of equal options share one otherwise.
    ("grpc.use_local_subchannel_pool", 1),
]

DEFAULTS = [("grpc.use_local_subchannel_pool", 1)]
