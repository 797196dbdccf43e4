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
    reload.QUESTION,
    udp_connect.QUESTION,  # the last: Playwright keeps a loop running that no other can run beside
)
