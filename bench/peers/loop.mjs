// The usual relay on Node: parse, stamp, and one send for each of the others.
// With --greet it also says who came and went, as the classic dialect asks of a server (docs/reference/wire.md).
import { WebSocketServer } from "ws";

const port = Number(process.argv[2]);
const greets = process.argv.includes("--greet");
const rooms = new Map(); // path → Set of sockets; `last` is the last id given away

const server = new WebSocketServer({ host: "127.0.0.1", port, perMessageDeflate: false, clientTracking: false });

function tell(room, type, content, id, except) {
  const text = JSON.stringify({ type, content, id });
  for (const c of room) if (c !== except) c.send(text);
}

server.on("connection", (ws, request) => {
  let room = rooms.get(request.url);
  if (!room) {
    room = new Set();
    room.last = 0;
    rooms.set(request.url, room);
  }
  const id = ++room.last;
  room.add(ws);
  if (greets) {
    const ip = request.socket.remoteAddress;
    const content = JSON.stringify({ ip, playerCount: room.size, id });
    ws.send(JSON.stringify({ type: "connected", content, id }));
    const news = JSON.stringify({ text: `${id} has joined. Connections open: ${room.size}` });
    tell(room, "joined", news, id, ws);
  }
  ws.on("message", (data) => {
    const message = JSON.parse(data);
    message.id = id;
    const text = JSON.stringify(message);
    for (const c of room) if (c !== ws) c.send(text);
  });
  ws.on("close", () => {
    room.delete(ws);
    if (greets) tell(room, "left", { count: room.size }, id);
  });
  ws.on("error", () => {});
});
