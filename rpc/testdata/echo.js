// A client of the tests' echo service (grpc_test.go), in Node with @grpc/grpc-js: all kinds of
// calls, and what can end them. It takes the server's address, and says "ok" at the end.
'use strict';
const assert = require('node:assert');
const grpc = require('@grpc/grpc-js');

// Messages are google.protobuf.BytesValue: field 1, length, bytes.
const encode = (b) => {
  const head = [0x0a];
  let n = b.length;
  for (; n > 127; n >>>= 7) head.push((n & 127) | 128);
  return Buffer.concat([Buffer.from([...head, n]), b]);
};
const decode = (m) => {
  if (m.length === 0) return m;
  let at = 1;
  while (m[at++] & 128);
  return m.subarray(at);
};
const method = (name, up, down) => ({
  path: '/test.Echo/' + name, requestStream: up, responseStream: down,
  requestSerialize: encode, requestDeserialize: decode, responseSerialize: encode, responseDeserialize: decode,
});
const Echo = grpc.makeGenericClientConstructor({
  Unary: method('Unary', false, false), Up: method('Up', true, false),
  Down: method('Down', false, true), Both: method('Both', true, true),
}, 'test.Echo');

const metadata = (fields) => {
  const md = new grpc.Metadata();
  for (const [k, v] of Object.entries(fields)) md.set(k, v);
  return md;
};
const unary = (client, body, md = new grpc.Metadata(), options = {}) => new Promise((resolve, reject) => {
  client.Unary(body, md, options, (err, out) => (err ? reject(err) : resolve(out)));
});
const collect = (stream) => new Promise((resolve, reject) => {
  const all = [];
  stream.on('data', (b) => all.push(b));
  stream.on('error', reject);
  stream.on('end', () => resolve(Buffer.concat(all)));
});
const failure = async (promise) => {
  try { await promise; } catch (err) { return err; }
  throw new Error('it did not fail');
};

async function main() {
  const client = new Echo(process.argv[2], grpc.credentials.createInsecure());
  for (const size of [1, 1000, 20000, 1 << 20]) {
    const body = Buffer.alloc(size, 'abc');
    assert.deepEqual(await unary(client, body), body);
    assert.deepEqual(await collect(client.Down(body)), body);
    const both = client.Both();
    for (let i = 0; i < 3; i++) both.write(body);
    both.end();
    assert.deepEqual(await collect(both), Buffer.concat([body, body, body]));
    const up = new Promise((resolve, reject) => {
      const s = client.Up((err, out) => (err ? reject(err) : resolve(out)));
      s.write(body);
      s.write(body);
      s.end();
    });
    assert.deepEqual(await up, Buffer.concat([body, body]));
  }
  await Promise.all(Array.from({ length: 200 }, (_, i) => unary(client, Buffer.from('' + i)).then((out) => assert.equal(out.toString(), '' + i))));

  const failed = await failure(unary(client, Buffer.from('x'), metadata({ 'fail-bin': Buffer.from('100%: ü'), header: 'early', trailer: 't' })));
  assert.equal(failed.code, grpc.status.FAILED_PRECONDITION);
  assert.equal(failed.details, '100%: ü');
  assert.deepEqual(failed.metadata.get('trailer'), ['t']);
  assert.deepEqual(failed.metadata.get('trailer-bin'), [Buffer.from('\0t')]);

  const late = await failure(unary(client, Buffer.from('x'), metadata({ wait: 'y' }), { deadline: Date.now() + 50 }));
  assert.equal(late.code, grpc.status.DEADLINE_EXCEEDED);
  const cancelled = client.Both(metadata({ wait: 'y' }));
  setTimeout(() => cancelled.cancel(), 20);
  assert.equal((await failure(collect(cancelled))).code, grpc.status.CANCELLED);

  const zipped = new Echo(process.argv[2], grpc.credentials.createInsecure(), { 'grpc.default_compression_algorithm': 2 });
  const body = Buffer.alloc(100000, 'abc');
  assert.deepEqual(await unary(zipped, body), body);
  zipped.close();
  client.close();
  console.log('ok');
}

main().catch((err) => { console.error(err); process.exit(1); });
