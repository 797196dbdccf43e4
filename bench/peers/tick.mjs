// The same relay with our own algorithm: each message framed once, the frames of one turn of the event loop
// joined once per room, one write per client. Shows how much of the gain is the algorithm and how much is not.
import { WebSocketServer } from "ws";

const port = Number(process.argv[2]);
const rooms = new Map(); // path → Room

class Room {
  members = new Set(); // plain sockets
  frames = [];
  senders = [];
  last = 0; // the last id given away

  push(sender, bytes) {
    this.frames.push(bytes);
    this.senders.push(sender);
    if (this.frames.length === 1) setImmediate(() => this.flush());
  }

  flush() {
    const { frames, senders } = this;
    this.frames = [];
    this.senders = [];
    const all = frames.length === 1 ? frames[0] : Buffer.concat(frames);
    const own = new Set(senders);
    for (const socket of this.members) {
      if (!own.has(socket)) {
        socket.write(all);
      } else if (frames.length > 1) {
        const others = frames.filter((_, i) => senders[i] !== socket);
        if (others.length) socket.write(Buffer.concat(others));
      }
    }
  }
}

// RFC 6455 §5.2: an unmasked, final text frame
function frame(text) {
  const size = Buffer.byteLength(text);
  const head = size < 126 ? 2 : size < 65536 ? 4 : 10;
  const bytes = Buffer.allocUnsafe(head + size);
  bytes[0] = 0x81;
  if (head === 2) {
    bytes[1] = size;
  } else if (head === 4) {
    bytes[1] = 126;
    bytes.writeUInt16BE(size, 2);
  } else {
    bytes[1] = 127;
    bytes.writeBigUInt64BE(BigInt(size), 2);
  }
  bytes.write(text, head);
  return bytes;
}

const server = new WebSocketServer({ host: "127.0.0.1", port, perMessageDeflate: false, clientTracking: false });

server.on("connection", (ws, request) => {
  const { socket } = request;
  let room = rooms.get(request.url);
  if (!room) rooms.set(request.url, (room = new Room()));
  const id = ++room.last;
  room.members.add(socket);
  ws.on("message", (data) => {
    const message = JSON.parse(data);
    message.id = id;
    room.push(socket, frame(JSON.stringify(message)));
  });
  ws.on("close", () => room.members.delete(socket));
  ws.on("error", () => {});
});
