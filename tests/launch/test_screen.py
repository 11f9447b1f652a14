import os

from convoy.launch.screen import Follower, Screen


class TestFollower:
    def test_returns_complete_lines_with_a_prefix_and_at_the_end_the_rest(self, tmp_path):
        path = tmp_path / "log"
        follower = Follower(path, "[0] ")
        assert follower.lines(1000) == b""
        path.write_bytes(b"one\n\ntw")
        assert follower.lines(1000) == b"[0] one\n[0] \n"
        assert follower.lines(1000) == b""
        path.write_bytes(b"one\n\ntwo\nthree")
        assert follower.rest() == b"[0] two\n[0] three\n"
        assert follower.rest() == b""

    def test_very_long_line_is_returned_in_pieces(self, tmp_path):
        path = tmp_path / "log"
        path.write_bytes(b"x" * 100_000)
        follower = Follower(path, "")
        assert len(follower.lines(1)) + len(follower.rest()) == 100_002

    def test_only_the_end_of_a_very_long_rest_is_returned(self, tmp_path):
        path = tmp_path / "log"
        path.write_bytes(b"line\n" * 200_000 + b"last\n")
        note, _, rest = Follower(path, "").rest().partition(b"\n")
        assert b"737861" in note
        assert str(path).encode() in note
        assert rest.endswith(b"line\nlast\n")
        assert len(rest) == 2**18


class TestScreen:
    def test_writes_what_the_reader_is_ready_for_and_the_rest_later(self):
        reader, writer = os.pipe()
        screen = Screen(writer)
        lines = "".join(f"{number}\n" for number in range(50_000))
        screen.say(lines)  # more than the pipe's buffer, before anyone reads
        received = os.read(reader, 2**20)
        while len(received) < len(lines) + 1:
            screen.pump()
            received += os.read(reader, 2**20)
        assert received.decode() == lines + "\n"
        screen.drain()
        os.close(reader)
        screen.say("dropped")
        screen.drain()
        os.close(writer)

    def test_drops_everything_without_an_output(self):
        screen = Screen(None)
        screen.say("x")
        screen.drain()
