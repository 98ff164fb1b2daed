#!/usr/bin/python3
"""Bowline beside its peers and the physical limit: the same fio jobs, one table.

All servers are up at once and each job goes round all of them in turn, in an order that rotates,
so a slow minute of the machine hits all alike. Everything lies on one file system. Every block of
every disk is written once before anything is timed. The physical limit is fio itself, io_uring and
O_DIRECT, on a preallocated file. Ratios are of medians. The last table holds them against the
floors of SPECIFICATION.md.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

# name, unit, fio's arguments; SYNC=n is a flush after every n writes, LONG takes so many times the
# time: long enough that space is made as fast as it is used.
JOBS = [
    ("sequential write 1M", "MiB/s", "--rw=write --bs=1M --iodepth=8"),
    ("sequential read 1M", "MiB/s", "--rw=read --bs=1M --iodepth=8"),
    ("random read depth 1", "IOPS", "--rw=randread --bs=4k --iodepth=1"),
    ("random read depth 16", "IOPS", "--rw=randread --bs=4k --iodepth=16"),
    ("random read depth 64", "IOPS", "--rw=randread --bs=4k --iodepth=64"),
    ("random write depth 1", "IOPS", "--rw=randwrite --bs=4k --iodepth=1"),
    ("random write depth 16", "IOPS", "--rw=randwrite --bs=4k --iodepth=16"),
    ("random write depth 64", "IOPS", "--rw=randwrite --bs=4k --iodepth=64"),
    ("flush after 1", "IOPS", "--rw=randwrite --bs=4k --iodepth=1 SYNC=1"),
    ("flush after 8", "IOPS", "--rw=randwrite --bs=4k --iodepth=1 SYNC=8"),
    ("flush after 32", "IOPS", "--rw=randwrite --bs=4k --iodepth=1 SYNC=32"),
    ("flush after 1, 4 jobs", "IOPS", "--rw=randwrite --bs=4k --iodepth=1 --numjobs=4 SYNC=1"),
    ("flush after 8, 4 jobs", "IOPS", "--rw=randwrite --bs=4k --iodepth=1 --numjobs=4 SYNC=8"),
    ("flush after 32, 4 jobs", "IOPS", "--rw=randwrite --bs=4k --iodepth=1 --numjobs=4 SYNC=32"),
    ("mixed 70/30 depth 16", "IOPS", "--rw=randrw --rwmixread=70 --bs=4k --iodepth=16"),
    ("mail-like, 4 jobs", "IOPS", "--rw=randrw --rwmixread=50 --bssplit=4k/50:8k/20:16k/20:32k/10"
     " --iodepth=1 --numjobs=4 SYNC=1"),
    ("random write depth 16, long", "IOPS", "--rw=randwrite --bs=4k --iodepth=16 LONG=5"),
    ("512 byte write depth 16", "IOPS", "--rw=randwrite --bs=512 --iodepth=16"),
    ("flush beside a writer", "IOPS", "--rw=randwrite --bs=4k --iodepth=1 SYNC=1 BESIDE"),
]
BESIDE = "--name=beside --rw=write --bs=1M --iodepth=8"

# Least ratio to qemu-nbd with cache none, and to the physical limit.
FLOORS = {
    "sequential write 1M": (1.0, None),
    "sequential read 1M": (0.9, None),
    "random read depth 1": (1.0, None),
    "random read depth 16": (1.0, None),
    "random read depth 64": (1.0, None),
    "random write depth 1": (1.5, 0.8),
    "random write depth 16": (2.5, 0.8),
    "random write depth 64": (2.5, 0.8),
    "flush after 1": (1.2, 0.6),
    "flush after 8": (1.3, 0.7),
    "flush after 32": (1.3, 0.7),
    "flush after 1, 4 jobs": (1.4, 0.7),
    "flush after 8, 4 jobs": (1.3, 0.7),
    "flush after 32, 4 jobs": (1.3, 0.7),
    "mail-like, 4 jobs": (1.1, 0.8),
}
# Most that a column of the second table may be: job, column, unit.
CEILINGS = {
    ("random write depth 16", "cpu_us", "us of CPU for each write"): 10,
    ("random write depth 64", "cpu_us", "us of CPU for each write"): 10,
    ("flush beside a writer", "p99", "us, p99"): 10_000,
}
LIMIT, REFERENCE, OURS = "limit", "qemu-none", "bowline"


class Peer:
    """A server, or the file itself."""

    serves = True

    def __init__(self, name, folder, size):
        self.name, self.folder, self.size = name, os.path.join(folder, name), size
        self.socket, self.image = os.path.join(self.folder, "nbd.sock"), self.path("image")
        self.export, self.process = "", None
        os.makedirs(self.folder)

    def path(self, name):
        return os.path.join(self.folder, name)

    def prepare(self):
        with open(self.image, "wb") as image:
            os.posix_fallocate(image.fileno(), 0, self.size)

    def start(self):
        self.prepare()
        log = open(self.path("log"), "wb")
        self.process = subprocess.Popen(self.command(), stdout=log, stderr=log)
        for _ in range(300):
            asked = subprocess.run(["nbdinfo", "--size", self.uri()], capture_output=True)
            if asked.returncode == 0:
                break
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        else:
            raise SystemExit(f"{self.name} does not come up")
        if self.process.poll() is not None:
            raise SystemExit(f"{self.name} ended: {open(self.path('log')).read()}")

    def uri(self):
        return f"nbd+unix:///{self.export}?socket={self.socket}"

    def engine(self):
        return ["--ioengine=nbd", f"--uri={self.uri()}"]

    def counters(self):
        return {}

    def cpu_seconds(self):
        return tree_cpu_seconds(self.process.pid)

    def takes_part(self, arguments):
        return True

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait()


class Physical(Peer):
    serves = False

    def start(self):
        self.prepare()

    def engine(self):
        return ["--ioengine=io_uring", "--direct=1", f"--filename={self.image}"]

    def cpu_seconds(self):
        return 0.0


class Qemu(Peer):
    def __init__(self, name, folder, size, cache):
        super().__init__(name, folder, size)
        self.cache = cache

    def command(self):
        return ["qemu-nbd", "-t", "-k", self.socket, "-e", "16", "-f", "raw",
                f"--cache={self.cache}", "--aio=io_uring", self.image]


class Nbdkit(Peer):
    def command(self):
        return ["nbdkit", "-f", "-U", self.socket, "file", self.image]


class Bowline(Peer):
    def __init__(self, name, folder, size, program, factor, filters=()):
        super().__init__(name, folder, size)
        self.program, self.factor, self.filters = program, factor, filters
        self.export, self.control = "disk", self.path("control.sock")
        self.arena = None

    def prepare(self):
        self.arena = tempfile.mkdtemp(prefix="bowline-bench-", dir="/dev/shm")
        pool = ["pool", "create", self.image, "--size", str(int(self.size * self.factor))]
        subprocess.run([self.program, *pool, "--preallocate"], check=True, capture_output=True)

    def command(self):
        filters = [word for text in self.filters for word in ("--media-filter", text)]
        return [self.program, "serve", "--pool", self.image, "--nbd", f"unix:{self.socket}",
                "--control", self.control, "--arena", self.arena, *filters]

    def verb(self, *words):
        command = [self.program, "--control", self.control, *words]
        return subprocess.run(command, check=True, capture_output=True).stdout

    def start(self):
        self.export = ""
        self.prepare()
        log = open(self.path("log"), "wb")
        self.process = subprocess.Popen(self.command(), stdout=log, stderr=log)
        self.verb("wait", "--timeout", "60s")
        self.verb("disk", "create", "disk", "--size", str(self.size))
        self.export = "disk"

    def counters(self):
        command = [self.program, "--control", self.control, "status", "--json"]
        status = json.loads(subprocess.run(command, capture_output=True).stdout)
        disk, pool = status["disks"][0]["counters"], status["pool"]["counters"]
        return {"user": disk["write_bytes"], "flushes": disk["flush_operations"],
                "log": pool["log_bytes"], "map": pool["map_bytes"],
                "moved": pool["compaction_bytes"], "media_flushes": pool["media_flushes"],
                "medium": written_bytes(self.process.pid)}

    def takes_part(self, arguments):
        """With a filter only where there are flushes: that is what it delays."""
        return not self.filters or "SYNC=" in arguments

    def stop(self):
        super().stop()
        if self.arena:
            shutil.rmtree(self.arena, ignore_errors=True)


def written_bytes(process):
    """What a process has written to the medium, by the kernel's own count."""
    with open(f"/proc/{process}/io") as counts:
        return int(next(line for line in counts if line.startswith("write_bytes")).split()[1])


def tree_cpu_seconds(root):
    """CPU time of a process and all its descendants."""
    processes = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                words = stat.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        processes[int(pid)] = (int(words[1]), sum(map(int, words[11:15])))
    tree, grown = {root}, True
    while grown:
        more = {pid for pid, (parent, _) in processes.items() if parent in tree} - tree
        grown = bool(more)
        tree |= more
    ticks = sum(processes[pid][1] for pid in tree if pid in processes)
    return ticks / os.sysconf("SC_CLK_TCK")


def fio(peer, arguments, seconds, size):
    """One run: what fio measured of the job, and of the one beside it if there is one."""
    sync = "--fdatasync=" if not peer.serves else "--fsync="
    words = [word for word in arguments.replace("SYNC=", sync).split() if word.startswith("--")]
    common = [*peer.engine(), f"--size={size}", f"--runtime={seconds}", "--time_based",
              "--ramp_time=0.5", "--norandommap", "--randrepeat=0", "--thread"]
    command = ["fio", "--output-format=json", *common, "--name=job", "--group_reporting", *words]
    if "BESIDE" in arguments:
        command += BESIDE.split() + ["--new_group", *common]
    done = subprocess.run(command, capture_output=True, timeout=seconds + 60, cwd=peer.folder)
    if done.returncode != 0:
        raise SystemExit(f"{peer.name}: fio failed: {done.stderr.decode()}")
    text = done.stdout.decode()
    return json.loads(text[text.index("{"):])["jobs"]


def percentile(job, name):
    """In microseconds, of whichever of reads and writes there are more."""
    side = max(("read", "write"), key=lambda which: job[which]["total_ios"])
    at = job[side]["clat_ns"].get("percentile", {}).get(name, 0)
    if job["sync"]["total_ios"]:
        at = max(at, job["sync"]["lat_ns"].get("percentile", {}).get(name, 0))
    return at / 1000


def measure(peer, unit, arguments, seconds, size):
    times = next((int(word[5:]) for word in arguments.split() if word.startswith("LONG=")), 1)
    before, cpu = peer.counters(), peer.cpu_seconds()
    jobs = fio(peer, arguments, seconds * times, size)
    after, cpu = peer.counters(), peer.cpu_seconds() - cpu
    operations = sum(job[side]["total_ios"] for job in jobs for side in ("read", "write"))
    job = jobs[0]
    if unit == "MiB/s":
        value = (job["read"]["bw_bytes"] + job["write"]["bw_bytes"]) / (1 << 20)
    else:
        value = job["read"]["iops"] + job["write"]["iops"]
    row = {"value": value, "p50": percentile(job, "50.000000"),
           "p99": percentile(job, "99.000000"), "cpu_us": cpu * 1e6 / max(operations, 1)}
    for name in after:
        row[name] = after[name] - before[name]
    if "SYNC=" in arguments and after and not row["media_flushes"]:
        raise SystemExit(f"{peer.name} answers flushes without flushing the medium")
    # What a server with a page cache left dirty must not be written in the next one's time.
    subprocess.run(["sync", "-f", peer.folder], check=True)
    return row


def median(rows, name):
    return statistics.median(row.get(name, 0) for row in rows)


def table(results, peers, jobs, out):
    names = [peer.name for peer in peers]

    def write(text=""):
        print(text)
        out.write(text + "\n")

    write("| job | unit | " + " | ".join(names) + " | bowline vs qemu-none | vs limit |")
    write("|---|---|" + "---:|" * (len(names) + 2))
    for job, unit, _ in jobs:
        values = {name: median(results[job, name], "value")
                  for name in names if (job, name) in results}

        def ratio(other):
            ratio = compare(results, job, other)
            return f"{ratio:.2f}" if ratio else "-"
        cells = [f"{values[name]:,.0f}" if name in values else "-" for name in names]
        write(f"| {job} | {unit} | " + " | ".join(cells)
              + f" | {ratio(REFERENCE)} | {ratio(LIMIT)} |")
    write()
    write("| job | server | p50 us | p99 us | CPU us per I/O | log per user byte "
          "| map per user byte | moved per user byte | on the medium per user byte "
          "| media flushes per FLUSH |")
    write("|---|---|" + "---:|" * 8)
    for job, _, _ in jobs:
        for name in names:
            rows = results.get((job, name))
            if not rows:
                continue
            cells = [f"{median(rows, key):.0f}" for key in ("p50", "p99")]
            cells.append(f"{median(rows, 'cpu_us'):.1f}")
            user, flushes = median(rows, "user"), median(rows, "flushes")
            for key in ("log", "map", "moved", "medium"):
                cells.append(f"{median(rows, key) / user:.3f}" if user else "-")
            each = median(rows, "media_flushes") / flushes if flushes else 0
            cells.append(f"{each:.2f}" if flushes else "-")
            write(f"| {job} | {name} | " + " | ".join(cells) + " |")
    write()
    write("| figure | floor | measured | verdict |")
    write("|---|---:|---:|---|")
    for line in verdicts(results, [job for job, _, _ in jobs]):
        write(line)


def compare(results, job, other):
    """The ratio of our median to another's; none if either was not measured."""
    if (job, OURS) not in results or (job, other) not in results:
        return None
    return median(results[job, OURS], "value") / median(results[job, other], "value")


def verdicts(results, jobs):
    for job in jobs:
        for other, floor in zip((REFERENCE, LIMIT), FLOORS.get(job, ())):
            ratio = compare(results, job, other)
            if floor and ratio:
                word = "held" if ratio >= floor else "MISSED"
                yield f"| {job}, vs {other} | {floor:g}x | {ratio:.2f}x | {word} |"
    for (job, column, unit), ceiling in CEILINGS.items():
        if job in jobs and (job, OURS) in results:
            value = median(results[job, OURS], column)
            word = "held" if value <= ceiling else "MISSED"
            yield f"| {job}, {unit} | {ceiling} | {value:.1f} | {word} |"


def machine():
    with open("/proc/cpuinfo") as info:
        model = next((line.split(":")[1].strip() for line in info if "model name" in line), "?")
    kernel, cores = os.uname().release, os.cpu_count()
    return f"{model}, {cores} cores, Linux {kernel}, {time.strftime('%Y-%m-%d')}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bowline", help="the program; without it only the peers run")
    parser.add_argument("--jobs", default="", help="only jobs whose name has one of these words")
    parser.add_argument("--peers", default="", help="only these, separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=1024, help="the size of each disk")
    parser.add_argument("--folder", default=".", help="where the images go; one file system")
    parser.add_argument("--out", default="bench.md")
    options = parser.parse_args()
    words = [word for word in options.jobs.split(",") if word]
    jobs = [job for job in JOBS if not words or any(word in job[0] for word in words)]
    size, folder = options.mib << 20, tempfile.mkdtemp(
        prefix="bowline-bench-", dir=os.path.abspath(options.folder))
    peers = [Physical("limit", folder, size), Qemu("qemu-none", folder, size, "none"),
             Qemu("qemu-writeback", folder, size, "writeback"), Nbdkit("nbdkit", folder, size)]
    if options.bowline:
        program = os.path.abspath(options.bowline)
        peers += [Bowline("bowline", folder, size, program, 2.0),
                  Bowline("bowline-tight", folder, size, program, 1.25),
                  Bowline("bowline-slow-flush", folder, size, program, 2.0, ["flush-delay=2ms"])]
    chosen = options.peers.split(",") if options.peers else [peer.name for peer in peers]
    peers = [peer for peer in peers if peer.name in chosen]
    results = {}
    try:
        for peer in peers:
            peer.start()
            print(f"filling {peer.name}", file=sys.stderr)
            fill = ["fio", "--name=fill", *peer.engine(), "--rw=write", "--bs=1M", "--iodepth=8",
                    f"--size={size}", "--end_fsync=1", "--output=/dev/null"]
            subprocess.run(fill, check=True, cwd=peer.folder)
        order = list(peers)
        for round_number in range(options.rounds):
            for job, unit, arguments in jobs:
                for peer in order:
                    if not peer.takes_part(arguments):
                        continue
                    row = measure(peer, unit, arguments, options.seconds, size)
                    results.setdefault((job, peer.name), []).append(row)
                    print(f"round {round_number + 1}  {job:<24} {peer.name:<20} "
                          f"{row['value']:>10,.0f} {unit}", file=sys.stderr)
                order = order[1:] + order[:1]
        with open(options.out, "w") as out:
            print(machine())
            out.write(machine() + "\n\n")
            table(results, peers, jobs, out)
    finally:
        for peer in peers:
            peer.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
