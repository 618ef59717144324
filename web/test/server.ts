/** A real HTTP server that says what a test wants. */
import { type IncomingMessage, type ServerResponse, createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { onTestFinished } from 'vitest';

export type Handler = (request: IncomingMessage, response: ServerResponse, body: Buffer) => void;

/** Serve until the test is over; return the URL. */
export async function serve(handler: Handler): Promise<string> {
  const server = createServer((request, response) => {
    const parts: Buffer[] = [];
    request.on('data', (part: Buffer) => parts.push(part));
    request.on('end', () => handler(request, response, Buffer.concat(parts)));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** Read the document of a request in the binary extension. */
export function documentOf(
  request: IncomingMessage,
  body: Buffer,
): { id: string; parameters: Record<string, unknown>; inputs: { name: string; datatype: string; shape: number[] }[] } {
  const length = Number(request.headers['inference-header-content-length']);
  return JSON.parse(body.subarray(0, length).toString()) as ReturnType<typeof documentOf>;
}

/** Answer a request by logits in the binary extension. */
export function answer(
  response: ServerResponse,
  id: string,
  logits: readonly number[],
  shape: readonly number[],
  parameters: Record<string, unknown> = {},
): void {
  const raw = Buffer.from(new Float32Array(logits).buffer);
  const head = Buffer.from(
    JSON.stringify({
      model_name: 'edge',
      id,
      parameters,
      outputs: [{ name: 'logits', datatype: 'FP32', shape, parameters: { binary_data_size: raw.length } }],
    }),
  );
  response.writeHead(200, { 'Inference-Header-Content-Length': head.length });
  response.end(Buffer.concat([head, raw]));
}
