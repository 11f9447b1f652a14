"""The host file, the choice of hosts, and what is said of a host that cannot take part."""

import pytest

from convoy.core.errors import UsageError
from convoy.launch.ssh.choice import chosen_hosts
from convoy.launch.ssh.hosts import Host, parse_hosts, read_hosts
from convoy.launch.ssh.refusals import Remote, problem_of


class TestTheHostFile:
    def test_gives_user_port_slots_and_address(self):
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

    def test_may_name_one_host_by_its_ipv6_address_and_begin_with_a_byte_order_mark(self, tmp_path):
        (tmp_path / "hosts.txt").write_text("\ufeff[fd00::3]\n", encoding="utf-8")
        assert read_hosts(str(tmp_path / "hosts.txt")) == (Host("fd00::3", address="[fd00::3]"),)

    def test_may_name_a_machine_once_for_each_user_or_port(self):
        assert len(parse_hosts("node1:22\nnode1:23\nme@node1:22", "hosts.txt")) == 3

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("a\nb slots=0 # none", "hosts.txt:2: 'b slots=0 # none': slots=0 cannot be. Give 1 to 64 workers"),
            ("a slots=many", "hosts.txt:1: 'a slots=many': slots=many cannot be."),
            ("a slot=2", "hosts.txt:1: 'a slot=2': unknown 'slot=2' (did you mean 'slots'?). A line looks like"),
            ("a 2", "unknown '2'. A line looks like `me@node1:22 slots=2 address=10.0.0.1`"),
            ("a slots=1 slots=2", "slots stands there twice"),
            ("a address=", "address= is empty"),
            (
                "a\n\nb\na slots=2",
                "hosts.txt:4: 'a slots=2' names a again, after line 1. Give several workers of",
            ),
            ("fd00::1", "'fd00::1' is no host. An IPv6 address stands in brackets."),
            ("a\n[fd00::1]", "host [fd00::1] has the address [fd00::1], and workers reach each other over IPv4."),
            ("a slots=\u00b2", "slots=\u00b2 cannot be"),
            ("-oProxyCommand=x", "'-oProxyCommand=x' is no host."),
            ("a:70000", "port 70000 cannot be"),
            ("a\nlocalhost", "hosts.txt: host localhost is localhost to the other hosts, which would find themselves"),
            ("# a\n\n", "--hosts=hosts.txt names no host. A line looks like"),
        ],
    )
    def test_is_refused_with_line_content_and_mend(self, text, words):
        with pytest.raises(UsageError) as error:
            parse_hosts(text, "hosts.txt")
        assert words in str(error.value)

    def test_that_cannot_be_read_is_named(self, tmp_path):
        with pytest.raises(UsageError, match=r"--hosts=.*nowhere cannot be read \(No such file or directory\)"):
            read_hosts(str(tmp_path / "nowhere"))
        (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UsageError, match="it is no text"):
            read_hosts(str(tmp_path / "binary"))


class TestTheChoiceOfHosts:
    @pytest.mark.parametrize(
        ("devices", "virtual_replicas", "least", "chosen"),
        [
            ([1, 1], 2, 1, (0, 1)),
            ([1], 2, 1, (0,)),
            ([1, 1, 1], 2, 1, (0, 1)),
            ([1, 1, 1], 3, 1, (0, 1, 2)),
            ([2, 2, 1], 4, 1, (0, 1)),
            ([3, 1, 1], 4, 1, (0, 1)),
            ([4, 1, 1], 4, 1, (0,)),  # one host with four devices before two hosts with two
            ([3, 1, 1], 2, 1, (1, 2)),  # the first host does not fit at all
            ([4, 4, 4, 4, 4, 4, 4], 32, 2, (0, 1, 2, 3)),
            ([1, 1, 1], 2, 3, None),
            ([4], 2, 1, None),
            ([], 2, 1, None),
            ([8] * 63, 512, 1, tuple(range(32))),
        ],
    )
    def test_takes_the_most_that_divide_the_virtual_replicas(self, devices, virtual_replicas, least, chosen):
        assert chosen_hosts(devices, virtual_replicas=virtual_replicas, least=least) == chosen


class TestWhatIsSaidOfAHost:
    @pytest.mark.parametrize(
        ("returncode", "stderr", "stays", "words"),
        [
            (255, "Host key verification failed.", True, "compare the key, and confirm it: `ssh -F config -p 23 me@b`"),
            (
                255,
                "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.\n",
                True,
                "If it was set up anew, take the old key out with `ssh-keygen -R b`",
            ),
            (
                255,
                "me@b: Permission denied (publickey).",
                True,
                "host me@b:23 does not let this user in (ssh: me@b: Perm",
            ),
            (255, "ssh: Could not resolve hostname b: Name or service not known", True, "Correct its name in the host"),
            (255, "ssh: Could not resolve hostname b: Temporary failure in name resolution", False, "does not answer"),
            (255, "ssh: connect to host b port 22: Connection refused", False, "b port 22: Connection refused"),
            (255, "banner\nConnection timed out during banner exchange\n", False, "timed out during banner exchange"),
            (67, "bash: cd: /home/me/x: No such file or directory", True, "host me@b:23 has no folder /home/me/x"),
            (127, "bash: line 1: exec: /opt/py: not found", True, "host me@b:23 has no /opt/py"),
            (
                1,
                "/opt/py: Error while finding spec ...\nNo module named launch",
                True,
                "/opt/py on host me@b:23 has",
            ),
            (
                1,
                "SyntaxError: invalid syntax",
                True,
                "SyntaxError: invalid syntax). Look there: ssh -F config",
            ),
        ],
    )
    def test_names_it_and_the_mend(self, returncode, stderr, stays, words):
        remote = Remote("/home/me/x", "/opt/py", "config")
        problem = problem_of(Host("b", "me", 23), returncode, stderr, remote)
        assert words in problem.text
        assert problem.stays is stays
        assert not problem.text.endswith(".")
