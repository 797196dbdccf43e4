// Says which version of this file runs, 30 times a second. For `node --watch`.
import { WebSocketServer } from "ws";

const VERSION = 0;
const server = new WebSocketServer({ host: "127.0.0.1", port: Number(process.argv[2]) });

setInterval(() => {
  const text = JSON.stringify({ type: "version", content: VERSION });
  for (const client of server.clients) client.send(text);
}, 1000 / 30);
