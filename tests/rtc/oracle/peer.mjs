// A client by node-datachannel (libdatachannel), for tests/rtc/test_datachannel.py.
//
//     node peer.mjs PATH-OF-NODE-DATACHANNEL < offer.sdp
//
// It answers the offer, sends seven messages, closes when seven have come, and says on stdout what happens to it, one
// JSON object a line.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const nodeDataChannel = createRequire(import.meta.url)(process.argv[2]);
const say = (what) => process.stdout.write(JSON.stringify(what) + "\n");
const show = (message) => (typeof message === "string" ? ["text", message.length] : ["binary", message.length]);

let heard = 0; // unordered: the last sent need not be the last heard
const peer = new nodeDataChannel.PeerConnection("client", { iceServers: [] });
peer.onLocalDescription((sdp) => say({ answer: sdp }));
peer.onDataChannel((channel) => {
  channel.onMessage((message) => {
    say({ heard: show(message) });
    heard += 1;
    if (heard === 7) peer.close();
  });
  channel.onClosed(() => {
    say({ closed: true });
    setTimeout(() => nodeDataChannel.cleanup(), 50);
  });
  const start = () => {
    say({ open: [channel.getLabel(), channel.getId()] });
    channel.sendMessage("hello ä");
    channel.sendMessageBinary(Buffer.from([1, 2, 3]));
    channel.sendMessage("");
    channel.sendMessageBinary(Buffer.alloc(0));
    channel.sendMessage("x".repeat(5000));
    channel.sendMessageBinary(Buffer.alloc(65536));
    channel.sendMessage("end");
  };
  channel.isOpen() ? start() : channel.onOpen(start);
});
peer.setRemoteDescription(readFileSync(0, "utf8"), "offer");
