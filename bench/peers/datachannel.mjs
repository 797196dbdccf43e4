// The least a relay on node-datachannel can do: the signalling of geckos.io, and every text sent on unread.
import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import nodeDataChannel from "node-datachannel";

const port = Number(process.argv[2]);
const connections = new Map(); // id → PeerConnection
const channels = new Map(); // id → its open DataChannel

function connect(respond) {
  const id = randomUUID().replaceAll("-", "").slice(0, 24);
  const connection = new nodeDataChannel.PeerConnection(id, { iceServers: [], bindAddress: "127.0.0.1", enableIceUdpMux: true });
  connection.onStateChange((state) => {
    if (["closed", "disconnected", "failed"].includes(state)) end(id);
  });
  connection.onGatheringStateChange((state) => {
    if (state === "complete") respond({ userData: {}, id, localDescription: connection.localDescription() });
  });
  const channel = connection.createDataChannel("geckos.io", { unordered: true, maxRetransmits: 0 });
  channel.onOpen(() => channels.set(id, channel));
  channel.onClosed(() => end(id));
  channel.onMessage((text) => {
    for (const other of channels.values()) if (other !== channel && other.isOpen()) other.sendMessage(text);
  });
  connections.set(id, connection);
}

function end(id) {
  const connection = connections.get(id);
  connections.delete(id);
  channels.delete(id);
  if (connection) setImmediate(() => connection.close()); // not from within its own callback
}

createServer((request, response) => {
  const [, , , , id, what] = request.url.split("/"); // /.wrtc/v2/connections/{id}/{what}
  const respond = (value) => response.end(JSON.stringify(value));
  let body = "";
  request.on("data", (part) => (body += part));
  request.on("end", () => {
    if (request.method === "POST" && !id) return connect(respond);
    if (what === "remote-description") {
      const { sdp, type } = JSON.parse(body);
      connections.get(id)?.setRemoteDescription(sdp, type);
    }
    if (what === "close") end(id);
    respond([]);
  });
}).listen(port, "127.0.0.1");
