// Node's own HTTP server, answering the discovery request and nothing else.
import { createServer } from "node:http";

const port = Number(process.argv[2]);
const prefix = "/session/";

createServer((request, response) => {
  if (!request.url.startsWith(prefix)) {
    response.writeHead(404).end();
    return;
  }
  const room = decodeURIComponent(request.url.slice(prefix.length));
  const { host } = request.headers;
  const body = JSON.stringify({
    url: `http://${host}`,
    udp: `http://${host}`,
    state: "Ready",
    session: `ws://${host}${prefix}${encodeURIComponent(room)}`,
    room,
    node: "n1",
    ticket: "0123456789abcdef0123456789abcdef0123456789abcdef",
  });
  response.writeHead(200, {
    "Content-Type": "application/json",
    "Content-Length": Buffer.byteLength(body),
    "Access-Control-Allow-Origin": "*",
    "Cache-Control": "no-store",
  });
  response.end(body);
}).listen(port, "127.0.0.1");
