"""WebRTC data channels, sans-I/O: datagrams and `now` in, datagrams and events out. Knows no sockets and no rooms.

One file per layer, lowest first: `stun`, `ice` and `paths` (which address is the peer's), `sdp` (offer and answer),
`dtls` (encryption), `sctp` (messages; its wire is `sctp_chunks` and `sctp_messages`, its halves are `sctp_send` and
`sctp_receive`), `dcep` (channels in their words), `datachannel` (a whole peer, made of these).
"""
