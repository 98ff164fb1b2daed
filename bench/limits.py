#!/usr/bin/python3
"""The limits of Bowline itself: what no comparison shows, against the floors of SPECIFICATION.md.

memory    PSS of all processes after 2 million random 4 KiB writes over a disk of 100 GiB
start     from the start of the process to the answer to the first read, 20 GiB mapped on 1 TiB
recovery  the same for each GiB of log since the last checkpoint
stall     the longest turn of the data thread beside checkpoints, compaction and a discard of 1 TiB
space     80 % mapped, ten times the pool overwritten at random: amplification, stalls, content

Each makes its own pool and removes it. Nothing is compared with anything: run it when the machine
has nothing else to do, and read the load that the table names.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import nbd

from bench import machine

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


def say(text):
    print(text, file=sys.stderr, flush=True)


class Server:
    """A pool of its own, and a process that serves it when it is started."""

    def __init__(self, program, folder, pool_bytes):
        self.program, self.process, self.prefix = program, None, []
        self.folder = tempfile.mkdtemp(prefix="bowline-limits-", dir=folder)
        self.arena = tempfile.mkdtemp(prefix="bowline-limits-", dir="/dev/shm")
        self.pool, self.socket = self.path("pool"), self.path("nbd.sock")
        self.control, self.log = self.path("control.sock"), open(self.path("log"), "wb")
        self.verb("pool", "create", self.pool, "--size", str(pool_bytes))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder)
        shutil.rmtree(self.arena)

    def path(self, name):
        return os.path.join(self.folder, name)

    def verb(self, *words):
        command = [self.program, "--control", self.control, "--json", *words]
        done = subprocess.run(command, capture_output=True)
        if done.returncode not in (0, 3):
            raise SystemExit(f"{' '.join(command)}: {done.stdout.decode()}{done.stderr.decode()}")
        return json.loads(done.stdout)

    def launch(self, *more):
        command = [*self.prefix, self.program, "serve", "--pool", self.pool,
                   "--nbd", f"unix:{self.socket}",
                   "--control", self.control, "--arena", self.arena, *more]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def start(self, *more):
        self.launch(*more)
        self.verb("wait", "--timeout", "60s")

    def first_read(self, disk, *more):
        """Starts the server. Returns the seconds until it has answered a read of the disk."""
        begin = time.monotonic()
        self.launch(*more)
        while True:
            try:
                client = self.client(disk)
                break
            except nbd.Error:
                if self.process.poll() is not None or time.monotonic() - begin > 120:
                    raise SystemExit(f"no server: {open(self.path('log')).read()[-2000:]}")
                time.sleep(0.002)
        client.pread(4096, 0)
        seconds = time.monotonic() - begin
        client.shutdown()
        return seconds

    def stop(self):
        self.verb("stop")
        self.process.wait()

    def kill(self, loses_arena=False):
        """The process dies, or with the arena the whole host."""
        self.process.kill()
        self.process.wait()
        if loses_arena:
            for name in os.listdir(self.arena):
                os.unlink(os.path.join(self.arena, name))

    def status(self):
        return self.verb("status")

    def counters(self):
        status = self.status()
        return dict(status["pool"]["counters"],
                    user_bytes=sum(d["counters"]["write_bytes"] for d in status["disks"]))

    def client(self, disk):
        client = nbd.NBD()
        client.connect_uri(self.uri(disk))
        return client

    def uri(self, disk):
        return f"nbd+unix:///{disk}?socket={self.socket}"

    def disk(self, name, size):
        self.verb("disk", "create", name, "--size", str(size))

    def fio(self, disk, arguments):
        """Runs a job; what fio measured of it."""
        return finish_fio(self.begin_fio(disk, arguments))

    def keep_apart(self):
        """Gives the server a processor that clients do not use: who has to wait for a processor
        stalls too, but not through any fault of its own."""
        first, *others = sorted(os.sched_getaffinity(0))
        if others:
            self.prefix = ["taskset", "-c", str(first)]
            os.sched_setaffinity(0, others)

    def begin_fio(self, disk, arguments):
        command = ["fio", "--name=job", "--ioengine=nbd", f"--uri={self.uri(disk)}", "--thread",
                   "--randrepeat=0", "--output-format=json", *arguments.split()]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                cwd=self.folder)

    def waited_seconds(self):
        """How long the data thread, the first one, was ready and did not run."""
        with open(f"/proc/{self.process.pid}/schedstat") as times:
            return int(times.read().split()[1]) / 1e9

    def written_bytes(self):
        """What the kernel says that the server has written to the medium."""
        with open(f"/proc/{self.process.pid}/io") as counts:
            return int(next(line for line in counts if line.startswith("write_bytes")).split()[1])


def finish_fio(process):
    out, complaints = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"fio failed: {complaints.decode()}{out.decode()[-3000:]}")
    text = out.decode()
    return json.loads(text[text.index("{"):])["jobs"][0]


def tail(job, side):
    """p99 and the worst of a job, in milliseconds."""
    times = job[side]["clat_ns"]
    return times["percentile"]["99.000000"] / 1e6, times["max"] / 1e6


# The figures. Each yields rows: what, floor (none if it has none), measured, unit.

def memory(options):
    writes = int(2_000_000 * options.scale)
    with Server(options.bowline, options.folder, 14 * GIB) as server:
        server.start()
        server.disk("disk", 100 * GIB)
        yield "memory at the start", None, pss_mib(server), "MiB"
        job = server.fio("disk", f"--rw=randwrite --bs=4k --iodepth=32 --norandommap"
                                 f" --size={100 * GIB} --io_size={writes * 4 * KIB}")
        yield f"memory after {writes:,} writes", 220, pss_mib(server), "MiB"
        say(f"memory: {job['write']['iops']:.0f} writes a second")
        counters = server.counters()
        yield "checkpoints meanwhile", None, counters["checkpoints"], ""
        yield "map bytes for each byte written", None, \
            counters["map_bytes"] / counters["user_bytes"], ""
        for _ in range(2):
            server.fio("disk", f"--rw=randread --bs=4k --iodepth=32 --norandommap"
                               f" --size={100 * GIB} --io_size={100 * MIB}")
        yield "memory after reads as well", 220, pss_mib(server), "MiB"
        yield "of it tables of live blocks and directories", None, tables_mib(server), "MiB"


def pss_mib(server):
    """Memory of the server's processes, and the whole arena whether it is mapped or not."""
    pss = shared = 0
    with open(f"/proc/{server.process.pid}/smaps_rollup") as rollup:
        for line in rollup:
            name, *words = line.split()
            pss += int(words[0]) * KIB if name == "Pss:" else 0
            shared += int(words[0]) * KIB if name == "Pss_Shmem:" else 0
    files = [os.stat(os.path.join(server.arena, name)) for name in os.listdir(server.arena)]
    arena = sum(one.st_blocks * 512 for one in files)
    return (pss - shared + arena) / MIB


def tables_mib(server):
    return server.status()["pool"]["tables_bytes"] / MIB


def start(options):
    size = int(20 * GIB * options.scale)
    with Server(options.bowline, options.folder, size * 23 // 20) as server:
        server.start()
        server.disk("disk", TIB)
        # A region of 1 MiB in every so many, over the whole disk: as file systems scatter.
        say("start: writing")
        stride = TIB // (size // MIB) - MIB
        server.fio("disk", f"--rw=write:{stride // KIB}k --bs=1M --iodepth=8 --size={TIB}"
                           f" --io_size={size}")
        name = f"start with {size // GIB} GiB mapped"
        yield "tables for what was written in order, a TiB of pool", None, \
            tables_mib(server) * TIB / size, "MiB"
        server.kill()
        drop_cache(server.pool)
        yield f"{name}, after kill -9", 1, server.first_read("disk"), "s"
        server.stop()
        for again in range(3):
            drop_cache(server.pool)
            yield f"{name}, after a stop ({again + 1})", 1, server.first_read("disk"), "s"
            server.stop()
        server.start()
        server.kill()
        yield f"{name}, idle, after kill -9", 1, server.first_read("disk"), "s"
        server.kill(loses_arena=True)
        yield f"{name}, idle, after a crash of the host", 1, \
            server.first_read("disk", "--accept-loss"), "s"
        server.stop()


def drop_cache(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def recovery(options):
    size = int(GIB * options.scale)
    kinds = {"4 KiB": "--rw=randwrite --bs=4k --iodepth=16 --norandommap",
             "1 MiB": "--rw=write --bs=1M --iodepth=8",
             "4 KiB flushed": "--rw=randwrite --bs=4k --iodepth=4 --norandommap --fsync=4"}
    for crash, loses_arena in ("process", False), ("host", True):
        for kind, arguments in kinds.items():
            with Server(options.bowline, options.folder, 21 * GIB) as server:
                server.start()
                server.disk("disk", 20 * GIB)
                server.stop()
                server.start()
                before = server.counters()
                server.fio("disk", f"{arguments} --size={20 * GIB} --io_size={size}")
                after = server.counters()
                if after["checkpoints"] != before["checkpoints"]:
                    raise SystemExit("a checkpoint came between")
                log = (after["log_bytes"] - before["log_bytes"]) / GIB
                server.kill(loses_arena)
                drop_cache(server.pool)
                seconds = server.first_read("disk", *(["--accept-loss"] if loses_arena else []))
                yield f"recovery, {kind} writes, crash of the {crash}, {log:.2f} GiB of log", 2, \
                    seconds / log, "s/GiB"


def stall(options):
    with Server(options.bowline, options.folder, 8 * GIB) as server:
        server.start()
        server.disk("work", 4 * GIB)
        server.disk("wide", TIB)
        say("stall: writing")
        server.fio("work", f"--rw=write --bs=1M --iodepth=8 --size={4 * GIB}")
        server.fio("wide", f"--rw=randwrite --bs=64k --iodepth=8 --size={TIB} --norandommap"
                           f" --io_size={int(GIB * options.scale)}")
        server.stop()
        processors = os.sched_getaffinity(0)
        server.keep_apart()
        server.start()
        before, waited = server.counters(), server.waited_seconds()
        seconds = int(60 * options.scale)
        common = f" --size={4 * GIB} --time_based --norandommap --runtime={seconds}"
        writer = server.begin_fio("work", "--rw=randwrite --bs=4k --iodepth=16" + common)
        reader = server.begin_fio("work", "--rw=randread --bs=4k --iodepth=1" + common)
        time.sleep(seconds * 0.5)
        begin, step = time.monotonic(), 2 * GIB
        client = server.client("wide")
        for at in range(0, TIB, step):
            client.trim(step, at)
        took = time.monotonic() - begin
        written, read = finish_fio(writer), finish_fio(reader)
        status = server.status()
        after, waited = server.counters(), server.waited_seconds() - waited
        os.sched_setaffinity(0, processors)
        yield "longest turn of the data thread", 10, status["stall_max_us"] / 1000, "ms"
        yield "time it waited for a processor", None, waited / seconds * 100, "%"
        yield "checkpoints meanwhile", None, after["checkpoints"] - before["checkpoints"], ""
        yield "moved by compaction meanwhile", None, \
            (after["compaction_bytes"] - before["compaction_bytes"]) / MIB, "MiB"
        yield "discard of 1 TiB in pieces of 2 GiB", None, took, "s"
        for name, (p99, worst) in ("write", tail(written, "write")), ("read", tail(read, "read")):
            yield f"{name} beside them, p99", None, p99, "ms"
            yield f"{name} beside them, worst", None, worst, "ms"


def space(options):
    pool = 4 * GIB
    mapped = pool * 8 // 10 // MIB * MIB
    with Server(options.bowline, options.folder, pool) as server:
        server.start()
        server.disk("disk", mapped)
        server.fio("disk", f"--rw=write --bs=1M --iodepth=8 --size={mapped}")
        limit = server.status()["pool"]["space"]
        say(f"space: {limit}")
        for kind, times in ("64k", 2), ("4k", 8):
            before, medium = server.counters(), server.written_bytes()
            times *= options.scale
            # The verification reads back every block written and wants its last version there.
            job = server.fio("disk", f"--rw=randwrite --bs={kind} --iodepth=16 --norandommap"
                                     f" --size={mapped} --io_size={int(times * pool)}"
                                     f" --refill_buffers --verify=xxhash --do_verify=1"
                                     f" --verify_fatal=1 --verify_async=0")
            after, medium = server.counters(), server.written_bytes() - medium
            user, log, map_bytes, moved = (
                after[name] - before[name]
                for name in ("user_bytes", "log_bytes", "map_bytes", "compaction_bytes"))
            name = f"{kind}, {times:g} times the pool"
            p99, worst = tail(job, "write")
            yield f"{name}: write amplification", None, (log + map_bytes + moved) / user, ""
            yield f"{name}: the same by the kernel's count", None, medium / user, ""
            yield f"{name}: log for each byte", None, log / user, ""
            yield f"{name}: map for each byte", None, map_bytes / user, ""
            yield f"{name}: moved for each byte", None, moved / user, ""
            yield f"{name}: rate", None, job["write"]["bw_bytes"] / MIB, "MiB/s"
            yield f"{name}: p99", None, p99, "ms"
            yield f"{name}: worst", None, worst, "ms"
            yield f"{name}: blocks read back wrong, errors", 0, job["error"], ""
        yield "tables for what was overwritten at random, a TiB of pool", None, \
            tables_mib(server) * TIB / pool, "MiB"
        server.stop()
        check = server.verb("pool", "check", server.pool)
        yield "pool check afterwards finds", 0, len(check["findings"]), ""


FIGURES = [memory, start, recovery, stall, space]


def main():
    parser = argparse.ArgumentParser(description=__doc__, add_help=True,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bowline", required=True, help="the program")
    parser.add_argument("--only", default="", help="only these figures, separated by commas")
    parser.add_argument("--scale", type=float, default=1.0, help="how much of everything")
    parser.add_argument("--folder", default=".", help="where the pools go")
    parser.add_argument("--out", help="a file for the table")
    options = parser.parse_args()
    options.bowline = os.path.abspath(options.bowline)
    options.folder = os.path.abspath(options.folder)
    words = [word for word in options.only.split(",") if word]
    load = os.getloadavg()[0]
    lines = [f"{machine()}, load before {load:.1f}", "",
             "| figure | floor | measured | verdict |", "|---|---:|---:|---|"]
    for figure in FIGURES:
        if words and figure.__name__ not in words:
            continue
        for name, floor, value, unit in figure(options):
            verdict = "-" if floor is None else "held" if value <= floor else "MISSED"
            wanted = "-" if floor is None else f"{floor:g} {unit}".strip()
            lines.append(f"| {name} | {wanted} | {value:,.3g} {unit} | {verdict} |")
            say(lines[-1])
    text = "\n".join(lines)
    print(text)
    if options.out:
        with open(options.out, "w") as out:
            out.write(text + "\n")


if __name__ == "__main__":
    main()
