"""The host file, the choice of hosts, and the messages about hosts that cannot take part."""

import pytest

from convoy.core.errors import UsageError
from convoy.launch.ssh.choice import chosen_hosts
from convoy.launch.ssh.hosts import Host, parse_hosts, read_hosts
from convoy.launch.ssh.refusals import Remote, problem_of


class TestHostFile:
    def test_user_port_slots_and_address(self):
        text = """
        # the machines under the desk
        node1
        me@node2:2222 slots=4 address=10.0.0.2   # the second interface
        [fd00::3]:22 address=node3
        """
        assert parse_hosts(text, "hosts.txt") == (
            Host("node1", address="node1"),
            Host("node2", "me", 2222, 4, "10.0.0.2"),
            Host("fd00::3", port=22, address="node3"),
        )

    def test_single_ipv6_host_after_a_byte_order_mark(self, tmp_path):
        (tmp_path / "hosts.txt").write_text("\ufeff[fd00::3]\n", encoding="utf-8")
        assert read_hosts(str(tmp_path / "hosts.txt")) == (Host("fd00::3", address="[fd00::3]"),)

    def test_same_host_with_different_users_and_ports(self):
        assert len(parse_hosts("node1:22\nnode1:23\nme@node1:22", "hosts.txt")) == 3

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("a\nb slots=0 # none", ("hosts.txt:2", "'b slots=0 # none'", "slots=0", "64")),
            ("a slots=many", ("hosts.txt:1", "'a slots=many'", "slots=many")),
            ("a slot=2", ("hosts.txt:1", "'slot=2'", "did you mean 'slots'?", "`me@node1:22 slots=2")),
            ("a 2", ("'2'", "`me@node1:22 slots=2 address=10.0.0.1`")),
            ("a slots=1 slots=2", ("slots is given twice",)),
            ("a address=", ("address= is empty",)),
            ("a\n\nb\na slots=2", ("hosts.txt:4", "'a slots=2'", "line 1", "slots=N")),
            ("fd00::1", ("'fd00::1'", "brackets")),
            ("a slots=\u00b2", ("slots=\u00b2",)),
            ("-oProxyCommand=x", ("'-oProxyCommand=x'",)),
            ("a:70000", ("port 70000", "65535")),
            ("a\nlocalhost", ("hosts.txt", "localhost", "address=ADDRESS")),
            ("# a\n\n", ("--hosts=hosts.txt has no hosts", "`me@node1:22")),
        ],
    )
    def test_invalid_lines_are_named(self, text, named):
        with pytest.raises(UsageError) as error:
            parse_hosts(text, "hosts.txt")
        assert [part for part in named if part not in str(error.value)] == []

    def test_unreadable_files_are_named(self, tmp_path):
        (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
        for path, reason in ((tmp_path / "nowhere", "No such file or directory"), (tmp_path / "binary", "text")):
            with pytest.raises(UsageError) as error:
                read_hosts(str(path))
            assert f"--hosts={path}" in str(error.value) and reason in str(error.value)


class TestChosenHosts:
    @pytest.mark.parametrize(
        ("devices", "virtual_replicas", "least", "chosen"),
        [
            ([1, 1], 2, 1, (0, 1)),
            ([1], 2, 1, (0,)),
            ([1, 1, 1], 2, 1, (0, 1)),
            ([1, 1, 1], 3, 1, (0, 1, 2)),
            ([2, 2, 1], 4, 1, (0, 1)),
            ([3, 1, 1], 4, 1, (0, 1)),
            ([4, 1, 1], 4, 1, (0,)),  # all three hosts have 6 devices, two of them 5 or 2
            ([3, 1, 1], 2, 1, (1, 2)),  # the first host has too many devices
            ([4, 4, 4, 4, 4, 4, 4], 32, 2, (0, 1, 2, 3)),
            ([1, 1, 1], 2, 3, None),
            ([4], 2, 1, None),
            ([], 2, 1, None),
            ([8] * 63, 512, 1, tuple(range(32))),
        ],
    )
    def test_largest_number_of_devices_that_divides_the_virtual_replicas(
        self, devices, virtual_replicas, least, chosen
    ):
        assert chosen_hosts(devices, virtual_replicas=virtual_replicas, least=least) == chosen


class TestProblems:
    @pytest.mark.parametrize(
        ("returncode", "stderr", "is_permanent", "named"),
        [
            (255, "Host key verification failed.", True, "`ssh -F config -p 23 me@b`"),
            (
                255,
                "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.\n",
                True,
                "`ssh-keygen -R b`",
            ),
            (255, "me@b: Permission denied (publickey).", True, "Permission denied"),
            (255, "ssh: Could not resolve hostname b: Name or service not known", True, "Name or service not known"),
            (
                255,
                "ssh: Could not resolve hostname b: Temporary failure in name resolution",
                False,
                "Temporary failure",
            ),
            (255, "ssh: connect to host b port 22: Connection refused", False, "b port 22: Connection refused"),
            (255, "banner\nConnection timed out during banner exchange\n", False, "timed out during banner exchange"),
            (67, "bash: cd: /home/me/x: No such file or directory", True, "folder /home/me/x"),
            (127, "bash: line 1: exec: /opt/py: not found", True, "--python=PATH"),
            (1, "/opt/py: Error while finding spec ...\nNo module named launch", True, "No module named launch"),
            (1, "SyntaxError: invalid syntax", True, "`ssh -F config -p 23 me@b /opt/py --version`"),
        ],
    )
    def test_are_classified_with_a_fix(self, returncode, stderr, is_permanent, named):
        remote = Remote("/home/me/x", "/opt/py", "config")
        problem = problem_of(Host("b", "me", 23), returncode, stderr, remote)
        assert "me@b:23" in problem.text and named in problem.text
        assert problem.is_permanent is is_permanent
        assert not problem.text.endswith(".")
