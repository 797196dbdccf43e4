"""Two play, the others watch. The server moves the ball, so nobody can cheat."""

from math import copysign

from session_server import Client, Refused, Room, on

WIDTH, HEIGHT = 1.0, 0.6  # of the field
PADDLE = 0.12  # height of a paddle
SPEED = 0.5  # of the ball, field widths per second


class Pong(Room):
    tick_rate = 30  # Hz
    keep = ("ball", "velocity", "paddles", "score", "seats")

    def on_create(self) -> None:
        self.seats: list[int | None] = [None, None]  # client ids, left and right
        self.paddles = [HEIGHT / 2, HEIGHT / 2]  # y of their middles
        self.score = [0, 0]
        self.serve(1.0)

    def serve(self, direction: float) -> None:
        self.ball = [WIDTH / 2, HEIGHT / 2]
        self.velocity = [SPEED * direction, SPEED * 0.4]

    @on("sit")
    def sit(self, client: Client) -> int:
        """Answers with the seat: 0 left, 1 right."""
        if client.id in self.seats:
            return self.seats.index(client.id)
        if None not in self.seats:
            raise Refused("both seats are taken")
        seat = self.seats.index(None)
        self.seats[seat] = client.id
        return seat

    @on("paddle", rate=90)
    def paddle(self, client: Client, y: float) -> None:
        if client.id in self.seats:
            self.paddles[self.seats.index(client.id)] = min(max(y, PADDLE / 2), HEIGHT - PADDLE / 2)

    def on_tick(self, dt: float) -> None:
        if None not in self.seats:
            self.move_ball(dt)
        state = {"ball": self.ball, "paddles": self.paddles, "score": self.score, "seats": self.seats}
        self.broadcast("state", state, reliable=False)

    def move_ball(self, dt: float) -> None:
        x, y = (p + v * dt for p, v in zip(self.ball, self.velocity, strict=True))
        if not 0 <= y <= HEIGHT:
            y = -y if y < 0 else 2 * HEIGHT - y
            self.velocity[1] *= -1
        side = 0 if x < 0.03 else 1 if x > WIDTH - 0.03 else None
        self.ball = [x, y]
        if side is not None and (self.velocity[0] < 0) == (side == 0):
            self.meet(side, y)

    def meet(self, side: int, y: float) -> None:
        """The ball is at a paddle's line: it bounces, steeper off the edge, or the other one scores."""
        offset = (y - self.paddles[side]) / (PADDLE / 2)
        if abs(offset) <= 1:
            faster = min(abs(self.velocity[0]) * 1.05, 2 * SPEED)
            self.velocity = [copysign(faster, -self.velocity[0]), SPEED * offset]
        else:
            self.score[1 - side] += 1
            self.serve(1.0 if side else -1.0)

    def on_leave(self, client: Client, reason: str) -> None:
        if client.id in self.seats:
            self.seats[self.seats.index(client.id)] = None
            self.score = [0, 0]
