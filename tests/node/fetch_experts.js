// A gRPC client from npm that shares nothing with tpad but the proto files.
//
// Fetches every expert of a model and compares each tensor with what lies in the
// original checkpoint's safetensors files. Prints how many blocks and tensors were
// equal; any difference ends it with an error.
//
// usage: fetch_experts.js PROTO_DIRECTORY ADDRESS MODEL CHECKPOINT

'use strict';

const assert = require('node:assert');
const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

function services(directory) {
  const options = { includeDirs: [directory], keepCase: true, longs: Number, oneofs: true, defaults: true };
  const files = ['tpad/v1/expert.proto', 'tpad/v1/model.proto'];
  return grpc.loadPackageDefinition(loader.loadSync(files, options)).tpad.v1;
}

// Name to dtype, shape and bytes: a shard is the length of a JSON header, the header, and the data.
function readCheckpoint(directory) {
  const tensors = new Map();
  for (const name of fs.readdirSync(directory).filter((name) => name.endsWith('.safetensors'))) {
    const shard = fs.readFileSync(path.join(directory, name));
    const begin = 8 + Number(shard.readBigUInt64LE(0));
    const header = JSON.parse(shard.subarray(8, begin).toString());
    delete header.__metadata__;
    for (const [tensor, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header)) {
      tensors.set(tensor, { dtype, shape, data: shard.subarray(begin + from, begin + to) });
    }
  }
  return tensors;
}

function sliceOf({ dtype, shape: [rows, ...shape], data }, row) {
  const size = data.length / rows;
  return { dtype, shape, data: data.subarray(row * size, (row + 1) * size) };
}

function unary(client, method, request) {
  return new Promise((resolve, reject) => {
    const deadline = new Date(Date.now() + 60_000);
    client[method](request, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

// Each block is opened once, then its image follows.
async function* blocks(stream) {
  let opened = null;
  let image = [];
  for await (const { part } of stream) {
    if (part.part === 'block') {
      if (opened) yield [opened, Buffer.concat(image)];
      [opened, image] = [part.block, []];
    } else if (part.part === 'payload') {
      image.push(part.payload);
    }
  }
  if (opened) yield [opened, Buffer.concat(image)];
}

async function main([proto, address, model, checkpoint]) {
  const { ExpertService, ModelService } = services(proto);
  const originals = readCheckpoint(checkpoint);
  const plain = grpc.credentials.createInsecure();
  const models = new ModelService(address, plain);
  const experts = new ExpertService(address, plain);
  const { tiers } = await unary(models, 'DescribeModel', { model });
  const request = { model, tiers: tiers.map((tier) => tier.id) };
  const compared = new Set();
  let tensors = 0;
  const deadline = new Date(Date.now() + 60_000);
  for await (const [block, image] of blocks(experts.FetchExperts(request, { deadline }))) {
    assert.strictEqual(image.length, block.image_bytes);
    for (const tensor of block.tensors) {
      let expected = originals.get(tensor.name);
      if (tensor.sliced) expected = sliceOf(expected, block.source_expert);
      else assert(tensor.name.includes(`.${block.source_expert}.`), tensor.name);
      const found = image.subarray(tensor.offset, tensor.offset + tensor.bytes);
      assert.deepStrictEqual([tensor.dtype, tensor.shape], [expected.dtype, expected.shape], tensor.name);
      assert(found.equals(expected.data), `${tensor.name} differs`);
      tensors += 1;
    }
    compared.add(`${block.key.expert.layer} ${block.source_expert}`);
  }
  models.close();
  experts.close();
  console.log(`blocks ${compared.size} tensors ${tensors}`);
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
