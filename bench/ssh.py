#!/usr/bin/env python3
"""`flightdeck exec` beside ssh with a shared connection (ControlMaster, its default cipher), both on loopback.

    bench/ssh.py [--rounds 20] [--gigabyte] target/release/flightdeck

Needs sshd (Debian: openssh-server) and openssl. Starts a server, a device and an sshd of its own in a temporary folder, and
ends them. Rounds are interleaved; what is printed are medians, and ratios of them. CPU is the client's own, but for the row
that says it is the device's. With a shared connection ssh leaves the work at the connection, output and all, to its master:
the last column is the ratio to both of them.
"""

import argparse
import concurrent.futures
import os
import pathlib
import pwd
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def measured(way, command, sink):
    """Runs a command, which has to write so many bytes; returns its wall time, its CPU, and that of its master."""
    command, before, begun = way.exec + [command], way.master_cpu(), time.perf_counter()
    child = subprocess.Popen(command, env=way.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    count = 0
    while piece := os.read(child.stdout.fileno(), 1 << 20):
        count += len(piece)
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - begun
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0 or count != sink:
        sys.exit(f"{command}: {child.returncode}, {count} bytes instead of {sink}: {errors.decode(errors='replace')}")
    return wall, usage.ru_utime + usage.ru_stime, way.master_cpu() - before


def until(happens, what, child, log):
    for _ in range(200):
        if happens():
            return
        if child.poll() is not None:
            break
        time.sleep(0.05)
    sys.exit(f"{what} did not start: {log.read_text()}")


def kilobytes(child, file, row):
    lines = pathlib.Path(f"/proc/{child.pid}/{file}").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(row)).split()[1])


class Fleet:
    """A server with a device, plain or with TLS."""

    def __init__(self, binary, folder, tls):
        self.folder = folder / ("tls" if tls else "plain")
        self.folder.mkdir()
        port = free_port()
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "FLIGHTDECK_SERVER": f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/ws",
            "FLIGHTDECK_API_KEY": "only-for-this-run",
            "FLIGHTDECK_TOKEN": "only-for-this-run",
        }
        serve = [binary, "serve", "--port", str(port)]
        if tls:
            key, certificate = self.folder / "key.pem", self.folder / "cert.pem"
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                 "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
                 "-keyout", key, "-out", certificate],
                check=True, capture_output=True)
            key.chmod(0o600)
            serve += ["--tls-cert", certificate, "--tls-key", key]
            self.env["FLIGHTDECK_CA_FILE"] = str(certificate)
        log = open(self.folder / "log", "w")
        self.server = subprocess.Popen(serve, env=self.env, stdout=log, stderr=log)
        said = lambda word: lambda: word in (self.folder / "log").read_text()
        until(said("listens on"), "the server", self.server, self.folder / "log")
        device = [binary, "device", "--id", "box", "--exec", "shell"]
        self.device = subprocess.Popen(device, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(said("connected to"), "the device", self.device, self.folder / "log")
        self.exec = [binary, "exec", "--on", "box", "--"]

    def memory(self):
        peak = lambda child: kilobytes(child, "status", "VmHWM") / 1024
        return f"server {peak(self.server):.0f} MB, device {peak(self.device):.0f} MB at most"

    def master_cpu(self):
        """There is none."""
        return 0

    def private(self):
        """What the device has written for itself alone, in MB."""
        return kilobytes(self.device, "smaps_rollup", "Private_Dirty") / 1024

    def device_cpu(self):
        """The CPU of the device and of what it has run, in seconds."""
        fields = pathlib.Path(f"/proc/{self.device.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        self.device.terminate()
        self.server.terminate()
        self.device.wait()
        self.server.wait()


class Ssh:
    """An sshd, and a connection to it that stays."""

    def __init__(self, folder):
        self.folder = folder / "ssh"
        self.folder.mkdir(mode=0o700)
        for name in ["host", "user"]:
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name], check=True)
        shutil.copy(self.folder / "user.pub", self.folder / "authorized")
        port, user = free_port(), pwd.getpwuid(os.getuid()).pw_name
        config = self.folder / "config"
        config.write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host\n"
            f"AuthorizedKeysFile {self.folder}/authorized\nStrictModes no\nUsePAM no\n"
            f"PermitRootLogin prohibit-password\nPidFile none\nMaxSessions 100\n")
        if os.getuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        sshd = shutil.which("sshd") or "/usr/sbin/sshd"
        self.server = subprocess.Popen([sshd, "-D", "-q", "-f", config], stderr=subprocess.DEVNULL)
        common = ["ssh", "-F", "none", "-p", str(port), "-i", str(self.folder / "user"), "-o", "StrictHostKeyChecking=no",
                  "-o", f"UserKnownHostsFile={self.folder}/known", "-o", f"ControlPath={self.folder}/control",
                  "-o", "LogLevel=ERROR", f"{user}@127.0.0.1"]
        time.sleep(0.5)
        master = common[:1] + ["-M", "-N", "-f"] + common[1:]
        subprocess.run(master, check=True)
        self.exec = common
        self.env = dict(os.environ)
        asked = subprocess.run(common[:1] + ["-O", "check"] + common[1:], check=True, capture_output=True, text=True)
        self.master = re.search(r"pid=(\d+)", asked.stderr + asked.stdout)[1]

    def master_cpu(self):
        """The CPU of the process that has the connection, in seconds."""
        return int(pathlib.Path(f"/proc/{self.master}/schedstat").read_text().split()[0]) / 1e9

    def end(self):
        subprocess.run(self.exec[:1] + ["-O", "exit"] + self.exec[1:], capture_output=True)
        self.server.terminate()
        self.server.wait()


def first_line(way):
    """Times between a line's writing and its arrival, in seconds."""
    says = f"import time\nfor _ in range(20): print(time.time(), flush=True); time.sleep(0.05)"
    command = way.exec + [f"python3 -c '{says}'"]
    child = subprocess.Popen(command, env=way.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    took = [time.time() - float(line) for line in child.stdout]
    child.wait()
    return took


def at_once(way, count=400, most=50):
    """How many commands a second there are, `most` at once."""
    def run(_):
        subprocess.run(way.exec + ["true"], env=way.env, stdin=subprocess.DEVNULL, check=True)

    with concurrent.futures.ThreadPoolExecutor(most) as pool:
        begun = time.perf_counter()
        list(pool.map(run, range(count)))
        return count / (time.perf_counter() - begun)


def bare_cpu(command):
    """The CPU of a shell that runs a command, in seconds."""
    child = subprocess.Popen(["sh", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, _, usage = os.wait4(child.pid, 0)
    child.returncode = 0
    return usage.ru_utime + usage.ru_stime


def device_cpu(fleet, command, count):
    """The CPU that a command takes on its device, over that of a bare shell that runs it in turn with the device."""
    before, bare = fleet.device_cpu(), 0
    for _ in range(count):
        subprocess.run(fleet.exec + [command], env=fleet.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        bare += bare_cpu(command)
    return (fleet.device_cpu() - before) / bare


def rows(rounds, gigabyte):
    yield "uname -r", "uname -r", len(os.uname().release) + 1, rounds
    yield "1 MB of output", "head -c 1000000 /dev/zero | tr '\\0' 'x'", 1_000_000, rounds
    if gigabyte:
        yield "1 GB of text", "head -c 1000000000 /dev/zero | tr '\\0' 'x'", 1_000_000_000, 3
        yield "1 GB of noise", "openssl enc -aes-128-ctr -nosalt -K 0 -iv 0 < /dev/zero 2>/dev/null | head -c 1000000000", \
            1_000_000_000, 3


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("binary")
    arguments.add_argument("--rounds", type=int, default=20)
    arguments.add_argument("--gigabyte", action="store_true", help="also the long rows")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        # A copy, as one that is installed: of the file as the linker wrote it the system maps smaller pieces.
        binary = shutil.copy(given.binary, folder / "flightdeck")
        ends = {"ssh": Ssh(folder), "plain": Fleet(binary, folder, False), "TLS": Fleet(binary, folder, True)}
        try:
            ours = ["plain", "TLS"]
            private = {end: ends[end].private() for end in ours}
            print(f"{'':16}{'':7}{'wall ms':>10}{'/ ssh':>7}{'CPU ms':>10}{'/ ssh':>7}{'/ both':>7}")
            for name, command, size, rounds in rows(given.rounds, given.gigabyte):
                took = {end: [] for end in ends}
                for _ in range(rounds):
                    for end, way in ends.items():
                        took[end].append(measured(way, command, size))
                median = {end: [statistics.median(column) * 1000 for column in zip(*all)] for end, all in took.items()}
                for end, (wall, cpu, master) in median.items():
                    base = median["ssh"]
                    ratios = f"{cpu / base[1]:7.2f}{(cpu + master) / (base[1] + base[2]):7.2f}"
                    print(f"{name:16}{end:7}{wall:10.1f}{wall / base[0]:7.2f}{cpu:10.2f}{ratios}")
            for end, way in ends.items():
                line = statistics.median(first_line(way)) * 1000
                print(f"{end}: a line arrives after {line:.1f} ms", end="")
                if end in ours:
                    cpu = device_cpu(way, "uname -r", 500)
                    print(f", {at_once(way):.0f} commands a second 50 at once,"
                          f" device CPU a command {cpu:.2f} of `sh -c`", end="")
                print()
            for end in ours:
                print(f"{end}: {ends[end].memory()}; the idle device alone {private[end]:.1f} MB")
        finally:
            for way in ends.values():
                way.end()


if __name__ == "__main__":
    main()
