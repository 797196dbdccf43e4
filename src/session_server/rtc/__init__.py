"""WebRTC data channels, sans-I/O: datagrams and `now` in, datagrams and events out. Knows no sockets and no rooms.

One file per layer, lowest first: `stun` (which address is the peer's), `sdp` (offer and answer), `dtls` (encryption),
`sctp` (messages; `sctp_chunks` is its wire, `sctp_send` and `sctp_receive` its two halves), `datachannel` (a whole peer,
made of these).
"""
