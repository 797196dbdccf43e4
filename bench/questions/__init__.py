"""One file per question, or per group. A new one: write the file, name it here."""

from bench.harness import Question
from bench.questions import discovery, fanout, generator, idle, latency, lobby, reload, small_rooms, udp, udp_connect

QUESTIONS: tuple[Question, ...] = (
    generator.QUESTION,
    fanout.QUESTION,
    *small_rooms.QUESTIONS,
    latency.QUESTION,
    lobby.QUESTION,
    idle.QUESTION,
    discovery.QUESTION,
    *udp.QUESTIONS,
    udp_connect.QUESTION,
    reload.QUESTION,
)
